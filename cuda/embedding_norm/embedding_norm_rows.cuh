// What both passes of the embedding with its norm share: a lane's channels of a row, the statistics
// of a row of the table, and the forward pass; formulas: embedding_norm_cpu.cpp.
#pragma once

#include "../common/gpu/vec8.cuh"
#include "../common/gpu/warp_reduce.cuh"
#include "embedding_norm_cuda.h"

namespace rwkv::embedding_norm {

constexpr int kMostWarps = 4;

template <int kChannels> struct Row {
  float at[kChannels];
};

// base[index .. index + kChannels): 8, or 1 where not all rows start at multiples of 16 bytes.
template <int kChannels>
__device__ __forceinline__ Row<kChannels> load_channels(const void* base, int64_t index,
                                                        DType dtype) {
  Row<kChannels> row;
  if constexpr (kChannels == kVec8) {
    const Vec8 x = load_vec8(base, index, dtype);
#pragma unroll
    for (int k = 0; k < kVec8; ++k) row.at[k] = x.at[k];
  } else if (dtype == DType::kFloat) {
    row.at[0] = load_element<DType::kFloat>(base, index);
  } else if (dtype == DType::kHalf) {
    row.at[0] = load_element<DType::kHalf>(base, index);
  } else {
    row.at[0] = load_element<DType::kBFloat16>(base, index);
  }
  return row;
}

template <int kChannels>
__device__ __forceinline__ void store_channels(void* base, int64_t index, DType dtype,
                                               const Row<kChannels>& row) {
  if constexpr (kChannels == kVec8) {
    Vec8 x;
#pragma unroll
    for (int k = 0; k < kVec8; ++k) x.at[k] = row.at[k];
    store_vec8(base, index, dtype, x);
  } else if (dtype == DType::kFloat) {
    store_element<DType::kFloat>(base, index, row.at[0]);
  } else if (dtype == DType::kHalf) {
    store_element<DType::kHalf>(base, index, row.at[0]);
  } else {
    store_element<DType::kBFloat16>(base, index, row.at[0]);
  }
}

// visit(c) for a lane's channels c of a row.
template <int kChannels, class Visit>
__device__ __forceinline__ void for_channels(int64_t width, Visit visit) {
  for (int64_t c = lane_number() * kChannels; c < width; c += kWarp * kChannels) visit(c);
}

// A row of the table, normalised, in all lanes of a warp. It is read again for every use, from the
// first-level cache.
template <int kChannels> struct NormalRow {
  const EmbeddingNormSizes& p;
  const void* table;
  int64_t start;
  float mean, rest, rho;  // rest: what rounding the mean has left

  __device__ NormalRow(const EmbeddingNormSizes& p, const void* table, int64_t id)
      : p(p), table(table), start(id * p.width), mean(0), rest(0), rho(1) {
    mean = mean_of([](float x) { return x; });
    rest = mean_of([](float x) { return x; });
    rho = 1.0f / sqrtf(mean_of([](float x) { return x * x; }) + static_cast<float>(p.eps));
  }

  __device__ Row<kChannels> load(int64_t c) const {
    Row<kChannels> x = load_channels<kChannels>(table, start + c, p.dtype);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) x.at[k] = ((x.at[k] - mean) - rest) * rho;
    return x;
  }

 private:
  template <class Of> __device__ float mean_of(Of of) const {
    float sum = 0;
    for_channels<kChannels>(p.width, [&](int64_t c) {
      const Row<kChannels> x = load(c);
#pragma unroll
      for (int k = 0; k < kChannels; ++k) sum += of(x.at[k]);
    });
    return sum_over_lanes<kWarp>(sum) / static_cast<float>(p.width);
  }
};

// What it computes: the normalised row of every token; NaN for a token without a row.
// What a warp owns: a token.
// What it gave up: a token that stands at several places is normalised at each of them.
template <int kChannels>
__global__ void __launch_bounds__(kMostWarps* kWarp)
    forward_kernel(const __grid_constant__ EmbeddingNormForward p) {
  const int64_t token = int64_t{blockIdx.x} * kMostWarps + warp_number();
  if (token >= p.tokens) return;
  const int64_t id = p.ids[token];
  const bool known = id >= 0 && id < p.vocabulary;
  const NormalRow<kChannels> row(p, p.table, known ? id : 0);
  for_channels<kChannels>(p.width, [&](int64_t c) {
    const auto weight = load_channels<kChannels>(p.weight, c, DType::kFloat);
    const auto bias = load_channels<kChannels>(p.bias, c, DType::kFloat);
    Row<kChannels> y = row.load(c);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      y.at[k] = known ? y.at[k] * weight.at[k] + bias.at[k] : NAN;
    }
    store_channels(p.y, token * p.width + c, p.dtype, y);
  });
}

}  // namespace rwkv::embedding_norm
