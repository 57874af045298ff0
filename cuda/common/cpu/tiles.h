// How a head's tokens and its state are cut into pieces that fit caches and registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vector.h"

namespace rwkv {

// Tokens worked on at a time. The backward pass keeps a tile's state at each of them; 16 fit into
// the first-level cache together with the block's inputs and gradients.
constexpr int64_t kBlock = 16;

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

// Rows of a tile of four vectors a row: half of the registers hold the tile.
template <typename T> constexpr int kRows = std::min(kRegisters / 8, kLanes<T>);

// Rows of a padded head: whole vectors and whole tiles.
template <typename T> constexpr int64_t padded(int64_t size) {
  constexpr int64_t unit = std::max(kRows<T>, kLanes<T>);
  return (size + unit - 1) / unit * unit;
}

template <int n> using Count = std::integral_constant<int, n>;

// Walks a state of `size` x `size` elements tile by tile: kRows of the first axis, up to four
// vectors of the second. visit(Count<vectors>, first, second).
template <typename T, typename Visit> void for_each_tile(int64_t size, Visit visit) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t second = 0; second < size;) {
    const int64_t left = (size - second) / L;
    for (int64_t first = 0; first < size; first += kRows<T>) {
      if (left >= 4) visit(Count<4>{}, first, second);
      else if (left >= 2) visit(Count<2>{}, first, second);
      else visit(Count<1>{}, first, second);
    }
    second += L * (left >= 4 ? 4 : left >= 2 ? 2 : 1);
  }
}

template <typename T> int64_t tile_count(int64_t size) {
  int64_t count = 0;
  for_each_tile<T>(size, [&count](auto, int64_t, int64_t) { ++count; });
  return count;
}

// A tile of vectors that is to stay in registers: every loop over it has constant bounds and is
// unrolled.
template <typename T, int kHeight, int kVectors> struct VectorTile {
  Vec<T> at[kHeight][kVectors];

  RWKV_INLINE void load_from(const T* corner, int64_t stride) {
#pragma GCC unroll 16
    for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) at[i][c] = load<T>(corner + i * stride + c * kLanes<T>);
    }
  }

  RWKV_INLINE void store_to(T* corner, int64_t stride) const {
#pragma GCC unroll 16
    for (int i = 0; i < kHeight; ++i) {
#pragma GCC unroll 16
      for (int c = 0; c < kVectors; ++c) store<T>(corner + i * stride + c * kLanes<T>, at[i][c]);
    }
  }
};

// x[i] = from[i] in every lane
template <typename T, int kCount> RWKV_INLINE void broadcast_each(Vec<T>* x, const T* from) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) x[i] = broadcast<T>(from[i]);
}

// to[j] += sum over lanes of x[j]; overwrites x.
template <typename T, int kCount> RWKV_INLINE void add_sums(T* to, Vec<T>* x) {
  const Vec<T> sums = sum_lanes<T, kCount>(x);
#pragma GCC unroll 16
  for (int j = 0; j < kCount; ++j) to[j] += sums[j * (kLanes<T> / kCount)];
}

// Lane i is the i-th of the kSums sums that sum_lanes gives.
template <typename T, int kSums> struct TakeSums {
  constexpr int operator()(int lane) const { return lane % kSums * (kLanes<T> / kSums); }
};

// to[j] = the j-th of the kSums sums that sum_lanes gives.
template <typename T, int kCount, int kSums> RWKV_INLINE void store_sums(T* to, Vec<T> sums) {
  const Vec<T> packed = shuffle<T, TakeSums<T, kSums>>(sums, sums);
  std::memcpy(to, &packed, kCount * sizeof(T));
}

// x[j] = the (kFirst + j)-th of the kSums sums that sum_lanes gives, in every lane.
template <typename T, int kCount, int kSums, int kFirst, int j = 0>
RWKV_INLINE void spread(Vec<T> sums, Vec<T>* x) {
  if constexpr (j < kCount) {
    x[j] = shuffle<T, TakeOne<T, (kFirst + j) * (kLanes<T> / kSums)>>(sums, sums);
    spread<T, kCount, kSums, kFirst, j + 1>(sums, x);
  }
}
// x[j] = (sum over lanes of x[j]) in every lane
template <typename T, int kCount> RWKV_INLINE void spread_sums(Vec<T>* x) {
  spread<T, kCount, kCount, 0>(sum_lanes<T, kCount>(x), x);
}

// Sums over lanes of x[0 .. 2 kCount): the first half goes to memory, the second into every lane of
// `spread_to`. Overwrites x. Together they take two thirds of the shuffles that they take apart.
template <typename T, int kCount>
RWKV_INLINE void store_and_spread(Vec<T>* x, T* to, Vec<T>* spread_to) {
  if constexpr (2 * kCount <= kLanes<T>) {
    const Vec<T> sums = sum_lanes<T, 2 * kCount>(x);
    store_sums<T, kCount, 2 * kCount>(to, sums);
    spread<T, kCount, 2 * kCount, kCount>(sums, spread_to);
  } else {
    store_sums<T, kCount, kCount>(to, sum_lanes<T, kCount>(x));
    spread<T, kCount, kCount, 0>(sum_lanes<T, kCount>(x + kCount), spread_to);
  }
}

}  // namespace rwkv
