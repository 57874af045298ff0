// Four consecutive elements at a time: arithmetic, and between memory and registers.
#pragma once

#include "vec8.cuh"

namespace rwkv {

__device__ inline float2 load_vec2(const float* from) {
  return *reinterpret_cast<const float2*>(from);
}
__device__ inline float4 load_vec4(const float* from) {
  return *reinterpret_cast<const float4*>(from);
}
__device__ inline void store_vec4(float* to, const float4& x) {
  *reinterpret_cast<float4*>(to) = x;
}
// Of bf16.
__device__ inline float4 widen_vec4(const uint2& x) {
  return make_float4(__uint_as_float(x.x << 16), __uint_as_float(x.x & 0xffff0000u),
                     __uint_as_float(x.y << 16), __uint_as_float(x.y & 0xffff0000u));
}
__device__ inline float4 widen_vec4(const uint16_t* from) {
  return widen_vec4(*reinterpret_cast<const uint2*>(from));
}
__device__ inline void narrow_vec4(uint16_t* to, const float4& x) {
  *reinterpret_cast<uint2*>(to) = {bit_cast_to<unsigned>(__floats2bfloat162_rn(x.x, x.y)),
                                   bit_cast_to<unsigned>(__floats2bfloat162_rn(x.z, x.w))};
}

__device__ inline void add_to(float4& sum, const float4& x) {
  sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
}
__device__ inline void take_from(float4& sum, const float4& x) {
  sum.x -= x.x, sum.y -= x.y, sum.z -= x.z, sum.w -= x.w;
}
__device__ inline float4 times(const float4& x, const float4& y) {
  return make_float4(x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w);
}
__device__ inline float4 times(float x, const float4& y) {
  return make_float4(x * y.x, x * y.y, x * y.z, x * y.w);
}
// By values: a choice between places would put both into memory.
__device__ inline float4 choose(bool first, const float4& x, const float4& y) {
  return make_float4(first ? x.x : y.x, first ? x.y : y.y, first ? x.z : y.z, first ? x.w : y.w);
}
__device__ inline float sum_of(const float4& x) { return (x.x + x.y) + (x.z + x.w); }

}  // namespace rwkv
