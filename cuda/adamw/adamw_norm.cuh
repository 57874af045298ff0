// The L2 norm of all gradients: squares chunk by chunk, then the sum over chunks by one block.
//
// A thread has 128 elements of a chunk, whose squares it sums in fp32; all other sums are fp64, in
// a tree over threads. No atomics: the order depends on the tensors' sizes alone.
#pragma once

#include "../common/gpu/vec8.cuh"
#include "adamw.h"

namespace rwkv {

constexpr int kAdamwThreads = 512;

// Elements of a tensor from `at` on, zeros from `end` on.
__device__ inline Vec8 adamw_load(const void* base, int64_t at, int64_t end, DType dtype,
                                  bool aligned) {
  if (aligned && at + kVec8 <= end) return load_vec8(base, at, dtype);
  Vec8 x = Vec8::of(0.0f);
  for (int i = 0; i < kVec8 && at + i < end; ++i) {
    x.at[i] = dtype == DType::kFloat      ? load_element<DType::kFloat>(base, at + i)
              : dtype == DType::kBFloat16 ? load_element<DType::kBFloat16>(base, at + i)
                                          : load_element<DType::kHalf>(base, at + i);
  }
  return x;
}

// The sum over a block's threads, in thread 0.
__device__ inline double adamw_block_sum(double mine) {
  __shared__ double sums[kAdamwThreads];
  const int thread = static_cast<int>(threadIdx.x);
  sums[thread] = mine;
  __syncthreads();
  for (int half = kAdamwThreads / 2; half > 0; half /= 2) {
    if (thread < half) sums[thread] += sums[thread + half];
    __syncthreads();
  }
  return sums[0];
}

// A block per chunk.
__global__ void __launch_bounds__(kAdamwThreads) adamw_squares_kernel(const AdamwNorm p) {
  const AdamwChunk chunk = adamw_chunk(p.table, blockIdx.x);
  const AdamwTensor tensor = *chunk.tensor;
  float sum = 0.0f;
  for (int64_t at = chunk.begin + static_cast<int64_t>(threadIdx.x) * kVec8; at < chunk.end;
       at += kAdamwThreads * kVec8) {
    const Vec8 g =
        adamw_load(tensor.gradient, at, chunk.end, tensor.gradient_dtype, tensor.aligned != 0);
#pragma unroll
    for (int i = 0; i < kVec8; ++i) sum += g.at[i] * g.at[i];
  }
  const double all = adamw_block_sum(static_cast<double>(sum));
  if (threadIdx.x == 0) p.squares[blockIdx.x] = all;
}

// One block.
__global__ void __launch_bounds__(kAdamwThreads) adamw_norm_kernel(const AdamwNorm p) {
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < p.table.chunks; i += kAdamwThreads) sum += p.squares[i];
  const double all = adamw_block_sum(sum);
  if (threadIdx.x == 0) *p.norm = sqrt(all);
}

}  // namespace rwkv
