// The decay of RWKV-7, exp(-exp(-1/2) sigmoid(w)).
#pragma once

#include "../common/octets.cuh"

namespace rwkv {

constexpr float kLargestRate = 0.6065306597126334f;  // exp(-1/2)

struct Wkv7Decay {
  Octet decay, slope;  // d and dd/dw
};

__device__ inline Wkv7Decay wkv7_decay(const Octet& w) {
  Wkv7Decay result;
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    // 1 - sigmoid from its own exponential: for large w the difference would lose its digits.
    const float sigmoid = 1.0f / (1.0f + expf(-w.at[i]));
    const float rest = 1.0f / (1.0f + expf(w.at[i]));
    const float log_decay = -kLargestRate * sigmoid;
    result.decay.at[i] = expf(log_decay);
    result.slope.at[i] = log_decay * rest * result.decay.at[i];
  }
  return result;
}

}  // namespace rwkv
