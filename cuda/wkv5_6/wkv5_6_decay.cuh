// The decay of RWKV-5 and 6, exp(-exp(w)).
#pragma once

#include "../common/gpu/fast_math.cuh"
#include "../common/gpu/vec8.cuh"

namespace rwkv {

// Beyond it exp(-exp(w)) is zero in fp32. Without the limit exp(w) becomes infinite, and zero times
// that, in the gradient of w, is NaN.
constexpr float kLargestLogRate = 5.0f;

// The decay's logarithm, -exp(w); also its own derivative by w.
__device__ inline float outer_log_decay(float w) {
  // Written so that NaN stays NaN.
  return -expf(w > kLargestLogRate ? kLargestLogRate : w);
}

// To base 2, within about 1e-6 of it: the decay is then 2 to that power, and the natural logarithm
// this times kLn2.
constexpr float kLn2 = 0.6931471805599453f;
__device__ __forceinline__ float outer_log2_decay(float w) {
  constexpr float kLog2OfE = 1.4426950408889634f, kLog2OfThat = 0.5287663729448977f;
  return -fast_exp2((w > kLargestLogRate ? kLargestLogRate : w) * kLog2OfE + kLog2OfThat);
}

struct OuterDecay {
  Octet decay, slope;  // d = exp(-exp(w)) and dd/dw = -exp(w) d
};

__device__ inline OuterDecay outer_decay(const Octet& w) {
  OuterDecay result;
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    const float log_decay = outer_log_decay(w.at[i]);
    result.decay.at[i] = expf(log_decay);
    result.slope.at[i] = log_decay * result.decay.at[i];
  }
  return result;
}

}  // namespace rwkv
