// The logistic function with what its gradient needs; the GPU's half of cpu/sigmoid.h.
#pragma once

#include "device.cuh"

namespace rwkv {

struct LaneSigmoid {
  float of_z, of_minus_z;  // s(z) and s(-z) = 1 - s(z)

  __device__ explicit LaneSigmoid(float z) {
    const float e = expf(-fabsf(z)), inverse = 1.0f / (1.0f + e), rest = e * inverse;
    of_z = z < 0.0f ? rest : inverse;
    of_minus_z = z < 0.0f ? inverse : rest;
  }

  __device__ float slope() const { return of_z * of_minus_z; }
};

}  // namespace rwkv
