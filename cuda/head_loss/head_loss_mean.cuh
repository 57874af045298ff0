// The weighted mean of the tokens' losses, in the order that head_loss_cpu.cpp has.
#pragma once

#include "../common/gpu/device.cuh"
#include "head_loss_cuda.h"

namespace rwkv::head_loss {

constexpr int kMeanThreads = 256;

// What it computes: loss and total.
// What a thread owns: blocks of 64 tokens, then pairs of their sums.
// What it gave up: more than one block of threads: there is one number a token.
__global__ void __launch_bounds__(kMeanThreads) mean_kernel(const __grid_constant__ HeadLossMean p) {
  const auto* const losses = static_cast<const float*>(p.losses);
  const auto* const mask = static_cast<const float*>(p.mask);
  const int64_t blocks = ceil_div(p.rows, kHeadLossBlock);
  double *const loss = p.sums, *const weight = p.sums + blocks;
  for (int64_t block = threadIdx.x; block < blocks; block += kMeanThreads) {
    double of_loss = 0, of_weight = 0;
    const int64_t begin = block * kHeadLossBlock;
    for (int64_t i = begin; i < begin + kHeadLossBlock && i < p.rows; ++i) {
      const double c = mask == nullptr ? 1.0 : static_cast<double>(mask[i]);
      of_loss += static_cast<double>(losses[i]) * c;
      of_weight += c;
    }
    loss[block] = of_loss, weight[block] = of_weight;
  }
  for (int64_t step = 1; step < blocks; step *= 2) {
    __syncthreads();
    for (int64_t block = 2 * step * threadIdx.x; block + step < blocks;
         block += 2 * step * kMeanThreads) {
      loss[block] += loss[block + step];
      weight[block] += weight[block + step];
    }
  }
  if (threadIdx.x != 0) return;
  const double sum = weight[0] > 0 ? weight[0] : 1.0;
  const double total = p.given_total > 0 ? p.given_total : sum;
  *static_cast<float*>(p.loss) = static_cast<float>(loss[0] / total);
  *static_cast<float*>(p.total) = static_cast<float>(total);
}

}  // namespace rwkv::head_loss
