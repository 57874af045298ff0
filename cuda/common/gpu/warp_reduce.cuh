// Sums over groups of lanes in which every lane ends up with the sums of a share of the values:
// with n values and n lanes n - 1 shuffles instead of n log n. The order of adding is fixed.
#pragma once

#include "device.cuh"

namespace rwkv {

// How many of kCount sums each of kLanes lanes keeps.
template <int kCount, int kLanes>
constexpr int kSumsKept = kCount > kLanes ? kCount / kLanes : 1;

// One step of reduce_scatter: lanes that differ in kMask add theirs, and halve the work if they
// can.
template <int kCount, int kMask, int kStride, int kTotal>
__device__ __forceinline__ void reduce_scatter_from(float (&x)[kTotal], int lane) {
  constexpr int kHalf = kCount / 2;
  if constexpr (kMask < kStride) {
    return;
  } else if constexpr (kHalf == 0) {
    x[0] += __shfl_xor_sync(kAllLanes, x[0], kMask);
    reduce_scatter_from<kCount, kMask / 2, kStride>(x, lane);
  } else {
    const bool upper = (lane & kMask) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float keep = upper ? x[i + kHalf] : x[i];
      const float give = upper ? x[i] : x[i + kHalf];
      x[i] = keep + __shfl_xor_sync(kAllLanes, give, kMask);
    }
    reduce_scatter_from<kHalf, kMask / 2, kStride>(x, lane);
  }
}

// Sums x[0 .. kCount) over the kLanes lanes that lie kStride apart. On return the first kSumsKept
// of x are the sums number first_sum_kept onwards.
template <int kCount, int kLanes, int kStride>
__device__ __forceinline__ void reduce_scatter(float (&x)[kCount], int lane) {
  reduce_scatter_from<kCount, kStride * kLanes / 2, kStride>(x, lane);
}

template <int kCount, int kLanes, int kStride> __device__ inline int first_sum_kept(int lane) {
  int first = 0, count = kCount;
#pragma unroll
  for (int mask = kStride * kLanes / 2; mask >= kStride && count > 1; mask /= 2) {
    count /= 2;
    if ((lane & mask) != 0) first += count;
  }
  return first;
}

// Whether a lane is the first of those that hold the same sum, and should write it.
template <int kCount, int kLanes, int kStride> __device__ inline bool writes_sum(int lane) {
  constexpr int kCopies = kLanes > kCount ? kLanes / kCount : 1;
  return (lane & (kStride * (kCopies - 1))) == 0;
}

// After reduce_scatter<kCount, kLanes, 1>, which left `mine`: the first kWanted sums, in all lanes.
template <int kCount, int kLanes, int kWanted>
__device__ __forceinline__ void all_gather(float (&sums)[kWanted], float mine, int lane) {
  static_assert(kWanted <= kCount && kCount <= kLanes);
  const int base = lane & ~(kLanes - 1);
#pragma unroll
  for (int i = 0; i < kWanted; ++i) {
    sums[i] = __shfl_sync(kAllLanes, mine, base + i * (kLanes / kCount));
  }
}

// The sum of x over kLanes neighbouring lanes, in all of them.
template <int kLanes> __device__ __forceinline__ float sum_over_lanes(float x) {
#pragma unroll
  for (int mask = kLanes / 2; mask >= 1; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}

}  // namespace rwkv
