// One vector at a time between memory in any element type and registers in the computing type,
// without a copy in between.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "typed_rows.h"
#include "vector.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace rwkv {

// The type in which a kernel computes on elements of type E.
template <typename E>
using Computing = std::conditional_t<std::is_same_v<E, double>, double, float>;

RWKV_INLINE Vec<float> load_wide(const float* from) { return load<float>(from); }
RWKV_INLINE Vec<double> load_wide(const double* from) { return load<double>(from); }

typedef uint16_t HalfWords __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));

// Compilers take four instructions for what is one on AVX-512.
RWKV_INLINE Words widen_words(HalfWords packed) {
#if defined(__AVX512F__)
  __m256i halves;
  std::memcpy(&halves, &packed, sizeof(halves));
  // Without the mask GCC 12 warns of what it leaves undefined.
  const __m512i whole = _mm512_maskz_cvtepu16_epi32(0xffff, halves);
  Words words;
  std::memcpy(&words, &whole, sizeof(words));
  return words;
#else
  return __builtin_convertvector(packed, Words);
#endif
}

// A bf16 is the upper half of an fp32.
RWKV_INLINE Vec<float> load_wide(const BFloat16* from) {
  HalfWords packed;
  std::memcpy(&packed, from, sizeof(packed));
  const Words words = widen_words(packed) << 16;
  Vec<float> x;
  std::memcpy(&x, &words, sizeof(x));
  return x;
}

RWKV_INLINE Vec<float> load_wide(const Half* from) {
  Vec<float> x;
#if defined(__AVX512F__)
  __m256i halves;
  std::memcpy(&halves, from, sizeof(halves));
  const __m512 wide = _mm512_maskz_cvtph_ps(0xffff, halves);
  std::memcpy(&x, &wide, sizeof(x));
#elif defined(__F16C__)
  __m128i halves;
  std::memcpy(&halves, from, sizeof(halves));
  const __m256 wide = _mm256_cvtph_ps(halves);
  std::memcpy(&x, &wide, sizeof(x));
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = widen(from[i]);
#endif
  return x;
}

RWKV_INLINE void store_narrow(float* to, Vec<float> x) { store<float>(to, x); }
RWKV_INLINE void store_narrow(double* to, Vec<double> x) { store<double>(to, x); }

// To nearest, ties to even. The instruction takes numbers below the smallest normal one for zero,
// as kernels do anyway.
RWKV_INLINE void store_narrow(BFloat16* to, Vec<float> x) {
#if defined(__AVX512BF16__)
  __m512 wide;
  std::memcpy(&wide, &x, sizeof(wide));
  const __m256bh packed = _mm512_cvtneps_pbh(wide);
#else
  Words words;
  std::memcpy(&words, &x, sizeof(words));
  const Words rounded = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
  const Words chosen = x == x ? rounded : Words{} + 0x7fc0u;
  const HalfWords packed = __builtin_convertvector(chosen, HalfWords);
#endif
  std::memcpy(to, &packed, sizeof(packed));
}

RWKV_INLINE void store_narrow(Half* to, Vec<float> x) {
#if defined(__AVX512F__)
  __m512 wide;
  std::memcpy(&wide, &x, sizeof(wide));
  const __m256i halves = _mm512_maskz_cvtps_ph(0xffff, wide, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(to, &halves, sizeof(halves));
#elif defined(__F16C__)
  __m256 wide;
  std::memcpy(&wide, &x, sizeof(wide));
  const __m128i halves = _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(to, &halves, sizeof(halves));
#else
  for (int i = 0; i < kLanes<float>; ++i) to[i] = narrow<Half>(x[i]);
#endif
}

// The first `count` elements if that is less than a vector, with zeros behind them.
template <typename E> RWKV_INLINE Vec<Computing<E>> load_part(const E* from, int64_t count) {
  if (count >= kLanes<Computing<E>>) return load_wide(from);
  E whole[kLanes<Computing<E>>] = {};
  std::memcpy(static_cast<void*>(whole), from, count * sizeof(E));
  return load_wide(whole);
}

template <typename E> RWKV_INLINE void store_part(E* to, int64_t count, Vec<Computing<E>> x) {
  if (count >= kLanes<Computing<E>>) return store_narrow(to, x);
  E whole[kLanes<Computing<E>>];
  store_narrow(whole, x);
  std::memcpy(static_cast<void*>(to), whole, count * sizeof(E));
}

// run.template operator()<E>() for the element type E that `dtype` names.
template <typename Run> void with_element_type(DType dtype, Run run) {
  switch (dtype) {
    case DType::kFloat:
      return run.template operator()<float>();
    case DType::kDouble:
      return run.template operator()<double>();
    case DType::kHalf:
      return run.template operator()<Half>();
    case DType::kBFloat16:
      return run.template operator()<BFloat16>();
  }
}

}  // namespace rwkv
