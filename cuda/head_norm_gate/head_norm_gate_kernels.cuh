// The two passes of the gated head norm; formulas in head_norm_gate_cpu.cpp. A head is N / 8 lanes
// of 8 channels, so that its sums are shuffles.
#pragma once

#include "../common/gpu/token_sums.cuh"
#include "../common/gpu/vec8.cuh"
#include "../common/gpu/warp_reduce.cuh"
#include "head_norm_gate.h"

namespace rwkv {

constexpr int kHeadNormChannels = kWarp * kVec8;  // of a warp
constexpr int kHeadNormThreads = kRuns * kWarp;
constexpr int kHeadNormSharedBytes = 2 * kRuns * kHeadNormChannels * static_cast<int>(sizeof(float));

// One thread's channels and tokens.
struct HeadNormPlace {
  int64_t part, channel;
  TokenRun run;
  bool is_inside;  // whether the channels exist: lanes of heads that do not only take part in sums

  __device__ explicit HeadNormPlace(const HeadNormSizes& p)
      : part(blockIdx.x / groups(p)),
        channel(blockIdx.x % groups(p) * kHeadNormChannels + lane_number() * kVec8),
        run(p.batch, p.time, part, warp_number()), is_inside(channel < p.width()) {}

  __host__ __device__ static int64_t groups(const HeadNormSizes& p) {
    return ceil_div(p.width(), kHeadNormChannels);
  }
  __device__ Vec8 load(const void* from, int64_t index, DType dtype) const {
    return is_inside ? load_vec8(from, index, dtype) : Vec8::of(0);
  }
  __device__ void store(void* to, int64_t index, DType dtype, const Vec8& x) const {
    if (is_inside) store_vec8(to, index, dtype, x);
  }
};

template <int kLanes> __device__ __forceinline__ float sum_of_head(const Vec8& x) {
  return sum_over_lanes<kLanes>(((x.at[0] + x.at[1]) + (x.at[2] + x.at[3])) +
                                ((x.at[4] + x.at[5]) + (x.at[6] + x.at[7])));
}

// x becomes (x - mean) rho; returns rho.
template <int kLanes> __device__ __forceinline__ float normalise_head(Vec8& x, float eps) {
  constexpr float kSize = kLanes * kVec8;
  const float mean = sum_of_head<kLanes>(x) / kSize;
  Vec8 squares;
#pragma unroll
  for (int c = 0; c < kVec8; ++c) {
    x.at[c] -= mean;
    squares.at[c] = x.at[c] * x.at[c];
  }
  const float rho = 1.0f / sqrtf(sum_of_head<kLanes>(squares) / kSize + eps);
#pragma unroll
  for (int c = 0; c < kVec8; ++c) x.at[c] *= rho;
  return rho;
}

struct HeadGate {
  float value, slope;

  __device__ __forceinline__ HeadGate(float z, bool silu) : value(z), slope(1.0f) {
    if (!silu) return;
    // From exp(-|z|): 1 - sigmoid(z) would lose its digits.
    const float e = expf(-fabsf(z)), inverse = 1.0f / (1.0f + e);
    const float sigmoid = (z < 0.0f ? e : 1.0f) * inverse;
    value = z * sigmoid;
    slope = sigmoid + z * (e * inverse * inverse);
  }
};

// What it computes: o.
// What a thread owns: 8 channels of 16 tokens of a sequence.
// What it gave up: lanes idle where the width is no multiple of 256, and few tokens leave a large
// card idle: one grid serves every card.
template <int kLanes>
__global__ void __launch_bounds__(kHeadNormThreads, 2)
    head_norm_gate_forward_kernel(const __grid_constant__ HeadNormForward p) {
  const HeadNormPlace place(p);
  const Vec8 weight = place.load(p.weight, place.channel, DType::kFloat);
  const Vec8 bias = place.load(p.bias, place.channel, DType::kFloat);
  const int64_t head = place.channel / (kLanes * kVec8);
#pragma unroll 1
  for (int n = 0; n < place.run.tokens; ++n) {
    const int64_t token = place.run.first + n, at = token * p.width() + place.channel;
    Vec8 x = place.load(p.y, at, p.dtype);
    const Vec8 g = place.load(p.g, at, p.dtype);
    normalise_head<kLanes>(x, static_cast<float>(p.eps));
#pragma unroll
    for (int c = 0; c < kVec8; ++c) x.at[c] = x.at[c] * weight.at[c] + bias.at[c];
    if (p.v != nullptr && place.is_inside) {
      const float s = static_cast<const float*>(p.s)[token * p.heads + head];
      const Vec8 v = load_vec8(p.v, at, p.dtype);
#pragma unroll
      for (int c = 0; c < kVec8; ++c) x.at[c] += s * v.at[c];
    }
#pragma unroll
    for (int c = 0; c < kVec8; ++c) x.at[c] *= HeadGate(g.at[c], p.silu).value;
    place.store(p.o, at, p.dtype, x);
  }
}

// The gradients of a thread's channels, and what its tokens add to those of the parameters.
template <int kLanes> struct HeadNormBackwardThread {
  const HeadNormBackward& p;
  const HeadNormPlace& place;
  const Vec8 weight, bias;
  Vec8 gweight = {}, gbias = {};

  __device__ HeadNormBackwardThread(const HeadNormBackward& p, const HeadNormPlace& place)
      : p(p), place(place), weight(place.load(p.weight, place.channel, DType::kFloat)),
        bias(place.load(p.bias, place.channel, DType::kFloat)) {}

  __device__ __forceinline__ void add(int64_t token) {
    const int64_t at = token * p.width() + place.channel;
    const int64_t head = token * p.heads + place.channel / (kLanes * kVec8);
    Vec8 hat = place.load(p.y, at, p.dtype), g = place.load(p.g, at, p.dtype);
    const Vec8 go = place.load(p.go, at, p.dtype);
    const float rho = normalise_head<kLanes>(hat, static_cast<float>(p.eps));
    Vec8 m, gm;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) m.at[c] = hat.at[c] * weight.at[c] + bias.at[c];
    Vec8 v = {};
    float s = 0.0f;
    if (p.v != nullptr && place.is_inside) {
      v = load_vec8(p.v, at, p.dtype);
      s = static_cast<const float*>(p.s)[head];
    }
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const HeadGate gate(g.at[c], p.silu);
      m.at[c] += s * v.at[c];
      gm.at[c] = go.at[c] * gate.value;
      g.at[c] = go.at[c] * m.at[c] * gate.slope;
      gweight.at[c] += gm.at[c] * hat.at[c];
      gbias.at[c] += gm.at[c];
    }
    place.store(p.gg, at, p.dtype, g);
    if (p.v != nullptr) store_bonus(at, head, s, v, gm);
    store_gy(at, rho, hat, gm);
  }

 private:
  __device__ __forceinline__ void store_bonus(int64_t at, int64_t head, float s, const Vec8& v,
                                              const Vec8& gm) const {
    Vec8 gv, products;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      gv.at[c] = gm.at[c] * s;
      products.at[c] = gm.at[c] * v.at[c];
    }
    const float gs = sum_of_head<kLanes>(products);
    place.store(p.gv, at, p.dtype, gv);
    const bool is_first = lane_number() % kLanes == 0;
    if (is_first && place.is_inside) static_cast<float*>(p.gs)[head] = gs;
  }
  __device__ __forceinline__ void store_gy(int64_t at, float rho, const Vec8& hat,
                                           const Vec8& gm) const {
    constexpr float kSize = kLanes * kVec8;
    Vec8 u, products;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      u.at[c] = gm.at[c] * weight.at[c];
      products.at[c] = u.at[c] * hat.at[c];
    }
    const float mean = sum_of_head<kLanes>(u) / kSize;
    const float slope = sum_of_head<kLanes>(products) / kSize;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) u.at[c] = rho * (u.at[c] - mean - hat.at[c] * slope);
    place.store(p.gy, at, p.dtype, u);
  }
};

// What it computes: gy, gg, gv, gs and, of every four blocks of tokens, the sums that the gradients
// of weight and bias are made of.
// What a thread owns: 8 channels of 16 tokens of a sequence.
// What it gave up: as the forward pass.
template <int kLanes>
__global__ void __launch_bounds__(kHeadNormThreads, 1)
    head_norm_gate_backward_kernel(const __grid_constant__ HeadNormBackward p) {
  DYNAMIC_SHARED(base);
  auto* const sums = reinterpret_cast<float*>(base);  // [kRuns][2][kHeadNormChannels]
  const HeadNormPlace place(p);
  HeadNormBackwardThread<kLanes> thread(p, place);
#pragma unroll 1
  for (int n = 0; n < place.run.tokens; ++n) thread.add(place.run.first + n);
  float* const own = sums + 2 * warp_number() * kHeadNormChannels + lane_number() * kVec8;
  store_floats(own, thread.gweight);
  store_floats(own + kHeadNormChannels, thread.gbias);
  __syncthreads();
  const int64_t first = blockIdx.x % HeadNormPlace::groups(p) * kHeadNormChannels;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * kHeadNormChannels; i += kHeadNormThreads) {
    const int64_t channel = first + i % kHeadNormChannels;
    const int64_t row = 2 * place.part + i / kHeadNormChannels;
    if (channel >= p.width()) continue;
    static_cast<float*>(p.parts)[row * p.width() + channel] =
        sum_of_runs(sums, 2 * kHeadNormChannels, i);
  }
}

}  // namespace rwkv
