// The decay of RWKV-5 and 6, exp(-exp(w)).
#pragma once

#include "octets.cuh"

namespace rwkv {

// Beyond it exp(-exp(w)) is zero in fp32. Without the limit exp(w) becomes infinite, and zero times
// that, in the gradient of w, is NaN.
constexpr float kLargestLogRate = 5.0f;

struct OuterDecay {
  Octet decay, slope;  // d = exp(-exp(w)) and dd/dw = -exp(w) d
};

__device__ inline OuterDecay outer_decay(const Octet& w) {
  OuterDecay result;
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    // Written so that NaN stays NaN.
    const float limited = w.at[i] > kLargestLogRate ? kLargestLogRate : w.at[i];
    const float log_decay = -expf(limited);
    result.decay.at[i] = expf(log_decay);
    result.slope.at[i] = log_decay * result.decay.at[i];
  }
  return result;
}

}  // namespace rwkv
