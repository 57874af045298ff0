// The logistic function with what its gradient needs, as ../cpu/sigmoid.h has it.
#pragma once

#include "fast_math.cuh"

namespace rwkv {

struct LaneSigmoid {
  float of_z, of_minus_z;  // s(z) and s(-z) = 1 - s(z)

  __device__ __forceinline__ explicit LaneSigmoid(float z) {
    const float e = expf(-fabsf(z)), inverse = fast_inverse(1.0f + e), rest = e * inverse;
    of_z = z < 0.0f ? rest : inverse;
    of_minus_z = z < 0.0f ? inverse : rest;
  }

  __device__ __forceinline__ float slope() const { return of_z * of_minus_z; }
};

}  // namespace rwkv
