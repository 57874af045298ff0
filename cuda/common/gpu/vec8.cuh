// Eight consecutive elements at a time between memory in the callers' element type and registers in
// fp32. The type is looked up at run time: it is the same for a whole launch and costs a branch per
// eight elements, whereas a template value would triple what has to be compiled.
#pragma once

#include "../params/dtypes.h"
#include "device.cuh"

namespace rwkv {

constexpr int kVec8 = 8;

struct Vec8 {
  float at[kVec8];

  __device__ static Vec8 of(float x) {
    Vec8 o;
#pragma unroll
    for (int i = 0; i < kVec8; ++i) o.at[i] = x;
    return o;
  }
};

__host__ __device__ inline int element_bytes(DType dtype) { return dtype == DType::kFloat ? 4 : 2; }

__device__ inline Vec8 load_floats(const float* from) {
  const float4 a = *reinterpret_cast<const float4*>(from);
  const float4 b = *reinterpret_cast<const float4*>(from + 4);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ inline void store_floats(float* to, const Vec8& x) {
  *reinterpret_cast<float4*>(to) = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(x.at[4], x.at[5], x.at[6], x.at[7]);
}

__device__ inline void add_vec8(Vec8& to, const Vec8& x) {
#pragma unroll
  for (int i = 0; i < kVec8; ++i) to.at[i] += x.at[i];
}

template <typename To, typename From> __device__ inline To bit_cast_to(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Eight elements of a two-byte type. A bf16 is the upper half of an fp32, so widening is a shift.
__device__ inline Vec8 widen_vec8(const uint4& packed, DType dtype) {
  const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
  Vec8 o;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (dtype == DType::kBFloat16) {
      o.at[2 * i] = __uint_as_float(words[i] << 16);
      o.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    } else {
      const float2 pair = __half22float2(bit_cast_to<__half2>(words[i]));
      o.at[2 * i] = pair.x;
      o.at[2 * i + 1] = pair.y;
    }
  }
  return o;
}

// base[index .. index + 8), index a multiple of 8
__device__ inline Vec8 load_vec8(const void* base, int64_t index, DType dtype) {
  if (dtype == DType::kFloat) return load_floats(static_cast<const float*>(base) + index);
  return widen_vec8(*reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(base) + index),
                    dtype);
}

__device__ inline unsigned packed_pair(float low, float high, DType dtype) {
  return dtype == DType::kBFloat16 ? bit_cast_to<unsigned>(__floats2bfloat162_rn(low, high))
                                   : bit_cast_to<unsigned>(__floats2half2_rn(low, high));
}

__device__ inline uint4 pack_vec8(const Vec8& x, DType dtype) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = packed_pair(x.at[2 * i], x.at[2 * i + 1], dtype);
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline void store_vec8(void* base, int64_t index, DType dtype, const Vec8& x) {
  if (dtype == DType::kFloat) return store_floats(static_cast<float*>(base) + index, x);
  *reinterpret_cast<uint4*>(static_cast<uint16_t*>(base) + index) = pack_vec8(x, dtype);
}

// One element, of a type known at compile time.
template <DType kType> __device__ float load_element(const void* base, int64_t index) {
  if constexpr (kType == DType::kFloat) return static_cast<const float*>(base)[index];
  const unsigned bits = static_cast<const uint16_t*>(base)[index];
  if constexpr (kType == DType::kBFloat16) return __uint_as_float(bits << 16);
  else return __half22float2(bit_cast_to<__half2>(bits)).x;
}

template <DType kType> __device__ void store_element(void* base, int64_t index, float x) {
  if constexpr (kType == DType::kFloat) {
    static_cast<float*>(base)[index] = x;
  } else {
    const unsigned bits = kType == DType::kBFloat16
                              ? bit_cast_to<unsigned>(__floats2bfloat162_rn(x, x))
                              : bit_cast_to<unsigned>(__floats2half2_rn(x, x));
    static_cast<uint16_t*>(base)[index] = static_cast<uint16_t>(bits & 0xffffu);
  }
}

}  // namespace rwkv
