// CUDA kernels of the gated head norm: the formulas of head_norm_gate_cpu.cpp. A head lies in
// size / 8 neighbouring lanes of a warp, so that its sums are shuffles.
#include "head_norm_gate_cuda.h"

#include "../common/gpu/lane_sigmoid.cuh"
#include "../common/gpu/token_runs.cuh"
#include "../common/gpu/warp_reduce.cuh"

namespace rwkv {
namespace head_norm_gate {

static_assert(kHeadNormJoinedBlocks == kJoinedBlocks);

// One thread's eight channels of a token; lanes beyond the last head have zeros, for the sums.
struct Row {
  const HeadNormSizes& p;
  const RunPlace& place;
  int64_t at;    // in [B, T, D]
  int64_t head;  // in [B, T, H]

  template <int kLanes> static __device__ Row of(const HeadNormSizes& p, const RunPlace& place,
                                                 int n) {
    const int64_t token = place.begin + n;
    return {p, place, token * p.heads * p.size + place.channel,
            token * p.heads + place.channel / (kLanes * kVec8)};
  }
  __device__ __forceinline__ Vec8 load(const void* from) const {
    return from != nullptr && place.has_channels ? load_vec8(from, at, p.dtype) : Vec8{};
  }
  __device__ __forceinline__ void store(void* to, const Vec8& x) const {
    if (place.has_channels) store_vec8(to, at, p.dtype, x);
  }
  __device__ __forceinline__ float bonus_weight(const void* s) const {
    return s != nullptr && place.has_channels ? static_cast<const float*>(s)[head] : 0.0f;
  }
};

__device__ __forceinline__ Vec8 load_parameter(const void* from, const RunPlace& place) {
  return place.has_channels ? load_floats(static_cast<const float*>(from) + place.channel) : Vec8{};
}

template <int kLanes> __device__ __forceinline__ float sum_of_head(const Vec8& x) {
  return sum_over_lanes<kLanes>(((x.at[0] + x.at[1]) + (x.at[2] + x.at[3])) +
                                ((x.at[4] + x.at[5]) + (x.at[6] + x.at[7])));
}

// y becomes (y - mean) rho; returns rho.
template <int kLanes> __device__ __forceinline__ float normalise(Vec8& y, double eps) {
  constexpr float kSize = kLanes * kVec8;
  const float mean = sum_of_head<kLanes>(y) / kSize;
  Vec8 squares;
#pragma unroll
  for (int c = 0; c < kVec8; ++c) {
    y.at[c] -= mean;
    squares.at[c] = y.at[c] * y.at[c];
  }
  const float variance = sum_of_head<kLanes>(squares) / kSize;
  const float rho = 1.0f / sqrtf(variance + static_cast<float>(eps));
#pragma unroll
  for (int c = 0; c < kVec8; ++c) y.at[c] *= rho;
  return rho;
}

// act(z) and its derivative.
struct LaneGate {
  float value, slope;

  __device__ __forceinline__ LaneGate(float z, bool silu) : value(z), slope(1.0f) {
    if (!silu) return;
    const LaneSigmoid sigmoid(z);
    value = z * sigmoid.of_z;
    slope = sigmoid.of_z + z * sigmoid.slope();
  }
};

// What it computes: o.
// What a thread owns: 8 channels of 16 tokens.
// What it gave up: lanes idle where the width is no multiple of 256.
template <int kLanes>
__global__ void __launch_bounds__(kRunThreads, 2)
    forward_kernel(const __grid_constant__ HeadNormForward p) {
  const RunPlace place(p.batch, p.time, p.heads * p.size);
  const Vec8 weight = load_parameter(p.weight, place), bias = load_parameter(p.bias, place);
#pragma unroll 1
  for (int n = 0; n < place.tokens; ++n) {
    const Row row = Row::of<kLanes>(p, place, n);
    Vec8 o = row.load(p.y);
    const Vec8 g = row.load(p.g), v = row.load(p.v);
    const float s = row.bonus_weight(p.s);
    normalise<kLanes>(o, p.eps);
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const float m = o.at[c] * weight.at[c] + bias.at[c] + s * v.at[c];
      o.at[c] = m * LaneGate(g.at[c], p.silu).value;
    }
    row.store(p.o, o);
  }
}

// What it computes: gy, gg, gv, gs and, per four blocks of tokens, the sums for the parameters.
// What a thread owns: 8 channels of 16 tokens.
// What it gave up: lanes idle where the width is no multiple of 256; the parameters, for which
// there is no room beside their sums, come from the first-level cache at every token.
template <int kLanes>
__global__ void __launch_bounds__(kRunThreads, 1)
    backward_kernel(const __grid_constant__ HeadNormBackward p) {
  constexpr float kSize = kLanes * kVec8;
  DYNAMIC_SHARED(shared);
  const RunPlace place(p.batch, p.time, p.heads * p.size);
  Vec8 gweight{}, gbias{};
#pragma unroll 1
  for (int n = 0; n < place.tokens; ++n) {
    const Row row = Row::of<kLanes>(p, place, n);
    Vec8 hat = row.load(p.y), g = row.load(p.g), v = row.load(p.v);
    const Vec8 go = row.load(p.go), weight = load_parameter(p.weight, place);
    const Vec8 bias = load_parameter(p.bias, place);
    const float s = row.bonus_weight(p.s), rho = normalise<kLanes>(hat, p.eps);
    Vec8 u, products, values;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const LaneGate gate(g.at[c], p.silu);
      const float m = hat.at[c] * weight.at[c] + bias.at[c] + s * v.at[c];
      const float gm = go.at[c] * gate.value;
      g.at[c] = go.at[c] * m * gate.slope;
      gweight.at[c] += gm * hat.at[c];
      gbias.at[c] += gm;
      values.at[c] = gm * v.at[c];
      v.at[c] = gm * s;
      u.at[c] = gm * weight.at[c];
      products.at[c] = u.at[c] * hat.at[c];
    }
    row.store(p.gg, g);
    if (p.v != nullptr) {
      const float gs = sum_of_head<kLanes>(values);
      const bool is_first = lane_number() % kLanes == 0;
      if (is_first && place.has_channels) static_cast<float*>(p.gs)[row.head] = gs;
      row.store(p.gv, v);
    }
    const float mean = sum_of_head<kLanes>(u) / kSize;
    const float slope = sum_of_head<kLanes>(products) / kSize;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) u.at[c] = rho * (u.at[c] - mean - hat.at[c] * slope);
    row.store(p.gy, u);
  }
  const int64_t width = p.heads * p.size;
  float* const sums = reinterpret_cast<float*>(shared);
  float* const to = static_cast<float*>(p.sums) + 2 * place.piece * width + place.channel;
  join_runs(sums, gweight, to, place.has_channels);
  join_runs(sums, gbias, to + width, place.has_channels);
}

}  // namespace head_norm_gate
}  // namespace rwkv

int rwkv_head_norm_gate_forward_cuda(const rwkv::HeadNormForward& params, void* stream) {
  using namespace rwkv;
  const int64_t blocks = run_blocks(params.batch, params.time, params.heads * params.size);
  return with_head_lanes(params, [&]<int kLanes>() {
    return launch(head_norm_gate::forward_kernel<kLanes>, blocks, kRunThreads, 0, stream, params);
  });
}

int rwkv_head_norm_gate_backward_cuda(const rwkv::HeadNormBackward& params, void* stream) {
  using namespace rwkv;
  const int64_t blocks = run_blocks(params.batch, params.time, params.heads * params.size);
  const int code = with_head_lanes(params, [&]<int kLanes>() {
    return launch(head_norm_gate::backward_kernel<kLanes>, blocks, kRunThreads, kRunSharedBytes,
                  stream, params);
  });
  if (code != 0) return code;
  return join_pieces(static_cast<float*>(params.sums), run_pieces(params.batch, params.time),
                     2 * params.heads * params.size, static_cast<float*>(params.total), stream);
}
