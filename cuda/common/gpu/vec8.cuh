// Eight consecutive elements at a time between memory in the callers' element type and registers in
// fp32. The type is looked up at run time: it is the same for a whole launch and costs a branch per
// eight elements, whereas a template value would triple what has to be compiled.
#pragma once

#include "device.cuh"
#include "../params/dtypes.h"

namespace rwkv {

constexpr int kOctet = 8;

struct Octet {
  float at[kOctet];

  __device__ static Octet of(float x) {
    Octet o;
#pragma unroll
    for (int i = 0; i < kOctet; ++i) o.at[i] = x;
    return o;
  }
};

__host__ __device__ inline int element_bytes(DType dtype) { return dtype == DType::kFloat ? 4 : 2; }

__device__ inline Octet load_floats(const float* from) {
  const float4 a = *reinterpret_cast<const float4*>(from);
  const float4 b = *reinterpret_cast<const float4*>(from + 4);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ inline void store_floats(float* to, const Octet& x) {
  *reinterpret_cast<float4*>(to) = make_float4(x.at[0], x.at[1], x.at[2], x.at[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(x.at[4], x.at[5], x.at[6], x.at[7]);
}

__device__ inline void add_octet(Octet& to, const Octet& x) {
#pragma unroll
  for (int i = 0; i < kOctet; ++i) to.at[i] += x.at[i];
}

template <typename To, typename From> __device__ inline To bit_cast_to(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Eight elements of a two-byte type.
__device__ inline Octet widen_octet(const uint4& packed, DType dtype) {
  const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
  Octet o;
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
__device__ inline Octet load_octet(const void* base, int64_t index, DType dtype) {
  if (dtype == DType::kFloat) return load_floats(static_cast<const float*>(base) + index);
  return widen_octet(
      *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(base) + index), dtype);
}

__device__ inline unsigned packed_pair(float low, float high, DType dtype) {
  return dtype == DType::kBFloat16 ? bit_cast_to<unsigned>(__floats2bfloat162_rn(low, high))
                                   : bit_cast_to<unsigned>(__floats2half2_rn(low, high));
}

__device__ inline uint4 pack_octet(const Octet& x, DType dtype) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = packed_pair(x.at[2 * i], x.at[2 * i + 1], dtype);
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline void store_octet(void* base, int64_t index, DType dtype, const Octet& x) {
  if (dtype == DType::kFloat) return store_floats(static_cast<float*>(base) + index, x);
  *reinterpret_cast<uint4*>(static_cast<uint16_t*>(base) + index) = pack_octet(x, dtype);
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
