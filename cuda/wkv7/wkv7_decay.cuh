// The decay of RWKV-7, exp(-exp(-1/2) sigmoid(w)).
#pragma once

#include "../common/gpu/fast_math.cuh"
#include "../common/gpu/vec8.cuh"
#include "wkv7.h"

namespace rwkv {

constexpr float kLargestRate = static_cast<float>(kWkv7LargestRate);

// The decay's logarithm.
__device__ inline float wkv7_log_decay(float w) { return -kLargestRate / (1.0f + expf(-w)); }

// For the kernels by chunks: the decay's logarithm to base 2, and the derivative by w of the
// natural one, both to about 1e-6.
struct Wkv7TensorDecay {
  float log2, slope;

  __device__ __forceinline__ explicit Wkv7TensorDecay(float w) {
    constexpr float kLog2OfE = 1.4426950408889634f;
    // Beyond it 1 - sigmoid(w) is 1, though in this form infinity times zero. Written so that NaN
    // stays NaN.
    const float falling = fast_exp2(kLog2OfE * (w < -80.0f ? 80.0f : -w));
    const float sigmoid = fast_inverse(1.0f + falling);
    log2 = -kLargestRate * kLog2OfE * sigmoid;
    slope = -kLargestRate * sigmoid * (falling * sigmoid);
  }
};

// 1 - sigmoid(w), from its own exponential: for large w the difference would lose its digits. The
// logarithm's derivative by w is the logarithm times this.
__device__ inline float wkv7_rest(float w) { return 1.0f / (1.0f + expf(w)); }

struct Wkv7Decay {
  Vec8 decay, slope;  // d and dd/dw
};

__device__ inline Wkv7Decay wkv7_decay(const Vec8& w) {
  Wkv7Decay result;
#pragma unroll
  for (int i = 0; i < kVec8; ++i) {
    const float log_decay = wkv7_log_decay(w.at[i]);
    result.decay.at[i] = expf(log_decay);
    result.slope.at[i] = log_decay * wkv7_rest(w.at[i]) * result.decay.at[i];
  }
  return result;
}

}  // namespace rwkv
