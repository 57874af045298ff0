// CUDA kernels of the bonus's weight: the formulas of bonus_cpu.cpp. A head lies in size / 8
// neighbouring lanes of a warp, so that its sum is shuffles.
#include "bonus_cuda.h"

#include "../common/gpu/token_runs.cuh"
#include "../common/gpu/warp_reduce.cuh"

namespace rwkv {
namespace bonus {

static_assert(kBonusJoinedBlocks == kJoinedBlocks);

__device__ __forceinline__ Vec8 load_or_zero(const void* from, int64_t at, DType dtype,
                                             const RunPlace& place) {
  return from != nullptr && place.has_channels ? load_vec8(from, at, dtype) : Vec8{};
}

__device__ __forceinline__ Vec8 load_weight(const void* from, const RunPlace& place) {
  return place.has_channels ? load_floats(static_cast<const float*>(from) + place.channel) : Vec8{};
}

// What it computes: s.
// What a thread owns: 8 channels of 16 tokens.
// What it gave up: lanes idle where the width is no multiple of 256.
template <int kLanes>
__global__ void __launch_bounds__(kRunThreads, 2)
    forward_kernel(const __grid_constant__ BonusForward p) {
  const int64_t width = p.heads * p.size;
  const RunPlace place(p.batch, p.time, width);
  const Vec8 weight = load_weight(p.weight, place);
#pragma unroll 1
  for (int n = 0; n < place.tokens; ++n) {
    const int64_t token = place.begin + n, at = token * width + place.channel;
    const Vec8 r = load_or_zero(p.r, at, p.dtype, place), k = load_or_zero(p.k, at, p.dtype, place);
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) sum += r.at[c] * k.at[c] * weight.at[c];
    sum = sum_over_lanes<kLanes>(sum);
    if (!place.has_channels || lane_number() % kLanes != 0) continue;
    static_cast<float*>(p.s)[token * p.heads + place.channel / (kLanes * kVec8)] = sum;
  }
}

// What it computes: gr, gk and, per four blocks of tokens, the sums for the weight.
// What a thread owns: 8 channels of 16 tokens.
// What it gave up: lanes idle where the width is no multiple of 256.
template <int kLanes>
__global__ void __launch_bounds__(kRunThreads, 1)
    backward_kernel(const __grid_constant__ BonusBackward p) {
  DYNAMIC_SHARED(shared);
  const int64_t width = p.heads * p.size;
  const RunPlace place(p.batch, p.time, width);
  const Vec8 weight = load_weight(p.weight, place);
  Vec8 gweight{};
#pragma unroll 1
  for (int n = 0; n < place.tokens && place.has_channels; ++n) {
    const int64_t token = place.begin + n, at = token * width + place.channel;
    const int64_t head = token * p.heads + place.channel / (kLanes * kVec8);
    const float gs = static_cast<const float*>(p.gs)[head];
    const Vec8 r = load_vec8(p.r, at, p.dtype), k = load_vec8(p.k, at, p.dtype);
    Vec8 gr = load_or_zero(p.gr_carry, at, p.dtype, place);
    Vec8 gk = load_or_zero(p.gk_carry, at, p.dtype, place);
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const float share = gs * weight.at[c];
      gr.at[c] += share * k.at[c];
      gk.at[c] += share * r.at[c];
      gweight.at[c] += gs * r.at[c] * k.at[c];
    }
    store_vec8(p.gr, at, p.dtype, gr);
    store_vec8(p.gk, at, p.dtype, gk);
  }
  join_runs(reinterpret_cast<float*>(shared), gweight,
            static_cast<float*>(p.sums) + place.piece * width + place.channel, place.has_channels);
}

}  // namespace bonus
}  // namespace rwkv

int rwkv_bonus_forward_cuda(const rwkv::BonusForward& params, void* stream) {
  using namespace rwkv;
  const int64_t blocks = run_blocks(params.batch, params.time, params.heads * params.size);
  return with_head_lanes(params, [&]<int kLanes>() {
    return launch(bonus::forward_kernel<kLanes>, blocks, kRunThreads, 0, stream, params);
  });
}

int rwkv_bonus_backward_cuda(const rwkv::BonusBackward& params, void* stream) {
  using namespace rwkv;
  const int64_t blocks = run_blocks(params.batch, params.time, params.heads * params.size);
  const int code = with_head_lanes(params, [&]<int kLanes>() {
    return launch(bonus::backward_kernel<kLanes>, blocks, kRunThreads, kRunSharedBytes, stream,
                  params);
  });
  if (code != 0) return code;
  return join_pieces(static_cast<float*>(params.sums), run_pieces(params.batch, params.time),
                     params.heads * params.size, static_cast<float*>(params.total), stream);
}
