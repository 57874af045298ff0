// Reads and writes rows of tensors in any element type; the kernels compute in float or double.
#pragma once

#include <cstdint>
#include <cstring>

#include "../params/dtypes.h"

namespace rwkv {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

inline float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}

inline float widen(Half x) {
  const uint32_t magnitude = x.bits & 0x7fffu, sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  // Below 2^-14 halves have a fixed spacing of 2^-24. Above, the exponent's bias moves from 15 to
  // 127; infinity and NaN get the largest exponent.
  const float small = static_cast<float>(magnitude) * 0x1p-24f;
  uint32_t bits = (magnitude << 13) + (112u << 23) + (magnitude >= 0x7c00u ? 112u << 23 : 0u);
  uint32_t small_bits;
  std::memcpy(&small_bits, &small, sizeof(small));
  bits = (magnitude < 0x400u ? small_bits : bits) | sign;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}

template <typename To, typename From> inline To narrow(From x) { return static_cast<To>(x); }

// Both round to nearest, ties to even.
template <> inline BFloat16 narrow<BFloat16, float>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(x != x ? 0x7fc0u : rounded)};
}

template <> inline Half narrow<Half, float>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  float absolute;
  std::memcpy(&absolute, &magnitude, sizeof(absolute));
  // Adding 0.5 leaves a multiple of the spacing 2^-24 of small halves in the low bits of the sum.
  const float shifted = absolute + 0.5f;
  uint32_t small;
  std::memcpy(&small, &shifted, sizeof(small));
  small -= 0x3f000000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? small : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = x != x ? 0x7e00u : half;
  return {static_cast<uint16_t>(half | sign)};
}

template <typename From, typename T>
inline void load_as(const void* base, int64_t offset, int64_t count, T* to) {
  const From* from = static_cast<const From*>(base) + offset;
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(widen(from[i]));
}

template <typename To, typename T>
inline void store_as(void* base, int64_t offset, int64_t count, const T* from) {
  To* to = static_cast<To*>(base) + offset;
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (sizeof(To) == 2) to[i] = narrow<To>(static_cast<float>(from[i]));
    else to[i] = static_cast<To>(from[i]);
  }
}

inline int64_t bytes_of(DType dtype) {
  return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2;
}

// to[0 .. count) = elements [offset, offset + count) of a tensor of element type `dtype`
template <typename T>
inline void load_row(const void* base, DType dtype, int64_t offset, int64_t count, T* to) {
  switch (dtype) {
    case DType::kFloat:
      return load_as<float>(base, offset, count, to);
    case DType::kDouble:
      return load_as<double>(base, offset, count, to);
    case DType::kHalf:
      return load_as<Half>(base, offset, count, to);
    case DType::kBFloat16:
      return load_as<BFloat16>(base, offset, count, to);
  }
}

template <typename T>
inline void store_row(void* base, DType dtype, int64_t offset, int64_t count, const T* from) {
  switch (dtype) {
    case DType::kFloat:
      return store_as<float>(base, offset, count, from);
    case DType::kDouble:
      return store_as<double>(base, offset, count, from);
    case DType::kHalf:
      return store_as<Half>(base, offset, count, from);
    case DType::kBFloat16:
      return store_as<BFloat16>(base, offset, count, from);
  }
}

}  // namespace rwkv
