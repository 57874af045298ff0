// Kernels that compute every element from the elements in the same place of other tensors.
#pragma once

#include "../params/launch_options.h"
#include "../params/pointwise_params.h"
#include "vec8.cuh"

namespace rwkv {

constexpr int kPointwiseThreads = 256;

template <int kCount> struct PerTensor {
  float at[kCount];
};

// One element where fewer than eight are left.
template <class Map, int kInputs, int kOutputs, DType kType>
__device__ void map_element(const Pointwise<kInputs, kOutputs>& p, int64_t i) {
  PerTensor<kInputs> x;
#pragma unroll
  for (int k = 0; k < kInputs; ++k) x.at[k] = load_element<kType>(p.inputs[k], i);
  const PerTensor<kOutputs> y = Map::of(x);
#pragma unroll
  for (int k = 0; k < kOutputs; ++k) store_element<kType>(p.outputs[k], i, y.at[k]);
}

template <class Map, int kInputs, int kOutputs>
__device__ void map_eight(const Pointwise<kInputs, kOutputs>& p, int64_t i) {
  Vec8 x[kInputs], y[kOutputs];
#pragma unroll
  for (int k = 0; k < kInputs; ++k) x[k] = load_vec8(p.inputs[k], i, p.dtype);
#pragma unroll
  for (int c = 0; c < kVec8; ++c) {
    PerTensor<kInputs> one;
#pragma unroll
    for (int k = 0; k < kInputs; ++k) one.at[k] = x[k].at[c];
    const PerTensor<kOutputs> result = Map::of(one);
#pragma unroll
    for (int k = 0; k < kOutputs; ++k) y[k].at[c] = result.at[k];
  }
#pragma unroll
  for (int k = 0; k < kOutputs; ++k) store_vec8(p.outputs[k], i, p.dtype, y[k]);
}

// What it computes: Map::of(one element of every input), an element of every output.
// What a thread owns: 8 neighbours.
// What it gave up: a thread reads its inputs once and waits for them; other warps fill the time.
template <class Map, int kInputs, int kOutputs>
__global__ void __launch_bounds__(kPointwiseThreads)
    pointwise_kernel(const __grid_constant__ Pointwise<kInputs, kOutputs> p) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kPointwiseThreads + threadIdx.x) * kVec8;
  if (i + kVec8 <= p.count) return map_eight<Map>(p, i);
  for (int64_t j = i; j < p.count; ++j) {
    if (p.dtype == DType::kFloat) map_element<Map, kInputs, kOutputs, DType::kFloat>(p, j);
    else if (p.dtype == DType::kHalf) map_element<Map, kInputs, kOutputs, DType::kHalf>(p, j);
    else map_element<Map, kInputs, kOutputs, DType::kBFloat16>(p, j);
  }
}

// 0, CUDA's number of an error, or kUnsupported for fp64.
template <class Map, int kInputs, int kOutputs>
int launch_pointwise(const Pointwise<kInputs, kOutputs>& p, void* stream) {
  if (p.dtype == DType::kDouble) return kUnsupported;
  const int64_t blocks = ceil_div(p.count, int64_t{kPointwiseThreads} * kVec8);
  return launch(pointwise_kernel<Map, kInputs, kOutputs>, blocks, kPointwiseThreads, 0, stream, p);
}

}  // namespace rwkv
