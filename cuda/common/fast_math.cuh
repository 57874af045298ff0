// Functions of one instruction each, within two units in the last place; arguments and results too
// small to be normal count as zero. For values that become operands in two bf16 parts afterwards,
// within 2^-17.
#pragma once

#include "device.cuh"

namespace rwkv {

__device__ __forceinline__ float fast_exp2(float x) {
#if defined(RWKV_HOST_SHIM)
  return exp2f(x);
#else
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#endif
}

__device__ __forceinline__ float fast_inverse(float x) {
#if defined(RWKV_HOST_SHIM)
  return 1.0f / x;
#else
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
#endif
}

}  // namespace rwkv
