// Vectors of the compiler's own kind (GCC and Clang), as wide as the machine the code is built for.
// No intrinsics: the same source serves AVX-512, AVX2, plain x86-64 and Arm.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace rwkv {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T> struct VectorTypes;
template <> struct VectorTypes<float> {
  typedef float values __attribute__((vector_size(kVectorBytes)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <> struct VectorTypes<double> {
  typedef double values __attribute__((vector_size(kVectorBytes)));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};

template <typename T> using Vec = typename VectorTypes<T>::values;
template <typename T> using BitVec = typename VectorTypes<T>::bits;
template <typename T> constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

#define RWKV_INLINE inline __attribute__((always_inline))

// memcpy states that `from` may be unaligned; it becomes one load.
template <typename T> RWKV_INLINE Vec<T> load(const T* from) {
  Vec<T> x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <typename T> RWKV_INLINE void store(T* to, Vec<T> x) { std::memcpy(to, &x, sizeof(x)); }

template <typename T> RWKV_INLINE Vec<T> broadcast(T x) { return x - Vec<T>{}; }

template <typename T> RWKV_INLINE Vec<T> from_bits(BitVec<T> x) {
  Vec<T> y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

template <typename T> RWKV_INLINE BitVec<T> to_bits(Vec<T> x) {
  BitVec<T> y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

// NaN in x passes through min and max: a comparison with NaN is false.
template <typename T> RWKV_INLINE Vec<T> min(T limit, Vec<T> x) {
  const Vec<T> bound = broadcast<T>(limit);
  return bound < x ? bound : x;
}
template <typename T> RWKV_INLINE Vec<T> max(T limit, Vec<T> x) {
  const Vec<T> bound = broadcast<T>(limit);
  return bound > x ? bound : x;
}

// Lane i of the result is element `Index{}(i)` of the concatenation (a, b).
template <typename T, typename Index, std::size_t... I>
RWKV_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index{}(static_cast<int>(I))...);
#else
  constexpr BitVec<T> order = {Index{}(static_cast<int>(I))...};
  return __builtin_shuffle(a, b, order);
#endif
}

template <typename T, typename Index> RWKV_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b) {
  return shuffle<T, Index>(a, b, std::make_index_sequence<kLanes<T>>{});
}

// Of every block of 2 * kHalf lanes of a and b: the first (kSecond = 0) or second (1) half of a's,
// then that of b's.
template <typename T, int kHalf, int kSecond> struct TakeHalves {
  constexpr int operator()(int lane) const {
    const int block = lane / (2 * kHalf), within = lane % (2 * kHalf);
    return within / kHalf * kLanes<T> + block * 2 * kHalf + kSecond * kHalf + within % kHalf;
  }
};

template <typename T, int kLane> struct TakeOne {
  constexpr int operator()(int) const { return kLane; }
};

template <typename T, int kHalf> RWKV_INLINE Vec<T> add_halves(Vec<T> a, Vec<T> b) {
  return shuffle<T, TakeHalves<T, kHalf, 0>>(a, b) + shuffle<T, TakeHalves<T, kHalf, 1>>(a, b);
}

// Sums of kRows vectors over their lanes by a pairwise tree; overwrites x. The lanes
// [g, g + 1) * kLanes / kRows of the result all hold the sum of x[g].
template <typename T, int kRows, int kHalf = kLanes<T> / 2>
RWKV_INLINE Vec<T> sum_lanes(Vec<T>* x) {
  static_assert(kRows <= 2 * kHalf || kRows == 1, "more rows than lanes");
  if constexpr (kRows > 1) {
    for (int i = 0; i < kRows / 2; ++i) x[i] = add_halves<T, kHalf>(x[i], x[i + kRows / 2]);
    return sum_lanes<T, kRows / 2, kHalf / 2>(x);
  } else if constexpr (kHalf > 0) {
    x[0] = add_halves<T, kHalf>(x[0], x[0]);
    return sum_lanes<T, 1, kHalf / 2>(x);
  } else {
    return x[0];
  }
}

template <typename T, int kHalf> RWKV_INLINE void transpose_step(Vec<T>* x) {
  if constexpr (kHalf > 0) {
    for (int i = 0; i < kLanes<T>; ++i) {
      if (i & kHalf) continue;
      const Vec<T> a = x[i], b = x[i + kHalf];
      x[i] = shuffle<T, TakeHalves<T, kHalf, 0>>(a, b);
      x[i + kHalf] = shuffle<T, TakeHalves<T, kHalf, 1>>(a, b);
    }
    transpose_step<T, kHalf / 2>(x);
  }
}

// to[j][i] = from[i][j] for size x size elements; both have rows of `stride` elements, and size is
// a multiple of kLanes.
template <typename T> void transpose(const T* from, T* to, int64_t size, int64_t stride) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < size; i += L) {
    for (int64_t j = 0; j < size; j += L) {
      Vec<T> block[L];
      for (int n = 0; n < L; ++n) block[n] = load<T>(from + (i + n) * stride + j);
      transpose_step<T, L / 2>(block);
      for (int n = 0; n < L; ++n) store<T>(to + (j + n) * stride + i, block[n]);
    }
  }
}

}  // namespace rwkv
