// Functions of one instruction each, within two units in the last place; arguments and results too
// small to be normal count as zero. For values that become operands in two bf16 parts afterwards,
// within 2^-17.
#pragma once

#include "device.cuh"

namespace rwkv {

__device__ __forceinline__ float fast_exp2(float x) {
#if defined(RWKV_HOST_SHIM)
  return x == 0.0f ? 1.0f : rwkv_shim::with_error(exp2f(x), x, 2);
#else
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#endif
}

__device__ __forceinline__ float fast_inverse(float x) {
#if defined(RWKV_HOST_SHIM)
  return x == 1.0f ? 1.0f : rwkv_shim::with_error(1.0f / x, x, 1);
#else
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
#endif
}

__device__ __forceinline__ float4 fast_exp2(const float4& x) {
  return make_float4(fast_exp2(x.x), fast_exp2(x.y), fast_exp2(x.z), fast_exp2(x.w));
}
__device__ __forceinline__ float4 fast_inverse(const float4& x) {
  return make_float4(fast_inverse(x.x), fast_inverse(x.y), fast_inverse(x.z), fast_inverse(x.w));
}

}  // namespace rwkv
