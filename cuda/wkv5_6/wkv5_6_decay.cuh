// The decay of RWKV-5 and 6, exp(-exp(w)).
#pragma once

#include "../common/gpu/fast_math.cuh"
#include "../common/gpu/vec8.cuh"
#include "wkv5_6_params.h"

namespace rwkv {

// The decay's logarithm, -exp(w); also its own derivative by w.
__device__ inline float wkv5_6_log_decay(float w) {
  // Written so that NaN stays NaN.
  return -expf(w > kLargestLogRate<float> ? kLargestLogRate<float> : w);
}

// To base 2, within about 1e-6 of it: the decay is then 2 to that power, and the natural logarithm
// this times kLn2.
constexpr float kLn2 = 0.6931471805599453f;
__device__ __forceinline__ float wkv5_6_log2_decay(float w) {
  constexpr float kLog2OfE = 1.4426950408889634f, kLog2OfThat = 0.5287663729448977f;
  return -fast_exp2((w > kLargestLogRate<float> ? kLargestLogRate<float> : w) * kLog2OfE +
                    kLog2OfThat);
}

struct Wkv5_6Decay {
  Vec8 decay, slope;  // d = exp(-exp(w)) and dd/dw = -exp(w) d
};

__device__ inline Wkv5_6Decay wkv5_6_decay(const Vec8& w) {
  Wkv5_6Decay result;
#pragma unroll
  for (int i = 0; i < kVec8; ++i) {
    const float log_decay = wkv5_6_log_decay(w.at[i]);
    result.decay.at[i] = expf(log_decay);
    result.slope.at[i] = log_decay * result.decay.at[i];
  }
  return result;
}

}  // namespace rwkv
