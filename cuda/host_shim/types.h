// The types and conversions of CUDA's headers that the kernels use, for a host compiler.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename T> void __stwb(T* to, T x) { *to = x; }

struct alignas(4) __nv_bfloat162 {
  uint16_t x, y;
};
struct alignas(4) __half2 {
  uint16_t x, y;
};

namespace rwkv_shim {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// A function's result as an instruction may give it that is exact to so many units in the last
// place: off by up to that many, as an arbitrary number made of the argument has it.
inline float with_error(float result, float argument, uint32_t units) {
  const uint32_t bits = bits_of(result), exponent = bits & 0x7f800000;
  if (exponent == 0 || exponent == 0x7f800000) return result;
  const uint32_t arbitrary = bits_of(argument) * 2654435761u >> 16;
  return float_of(bits - units + arbitrary % (2 * units + 1));
}

// To the nearest, ties to even, as the hardware does.
inline uint16_t bfloat16_bits(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t half_bits(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  // 65520 and beyond round to infinity.
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {
    // Below 2^-14 a half is a multiple of 2^-24; adding 2^-1 puts that digit last.
    const float shifted = float_of(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

inline float half_value(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  if (rest < 0x400) {
    const float magnitude = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  return float_of(sign | ((rest << 13) + 0x38000000));
}

}  // namespace rwkv_shim

inline float __uint_as_float(unsigned bits) { return rwkv_shim::float_of(bits); }
inline unsigned __float_as_uint(float x) { return rwkv_shim::bits_of(x); }

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {rwkv_shim::bfloat16_bits(x), rwkv_shim::bfloat16_bits(y)};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {rwkv_shim::half_bits(x), rwkv_shim::half_bits(y)};
}
inline float2 __half22float2(__half2 x) {
  return {rwkv_shim::half_value(x.x), rwkv_shim::half_value(x.y)};
}
