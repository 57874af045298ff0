// CUDA kernels of the value residual: the formulas of value_residual_cpu.cpp.
#include "value_residual_cuda.h"

#include "../common/gpu/lane_sigmoid.cuh"
#include "../common/gpu/token_runs.cuh"

namespace rwkv {

static_assert(kResidualJoinedBlocks == kJoinedBlocks);

// What it computes: v.
// What a thread owns: 8 channels of 16 tokens.
// What it gave up: lanes idle where the width is no multiple of 256.
__global__ void __launch_bounds__(kRunThreads)
    value_residual_forward_kernel(const __grid_constant__ ValueResidualForward p) {
  const RunPlace place(p.batch, p.time, p.width);
  if (!place.has_channels) return;
  const Vec8 base = load_floats(static_cast<const float*>(p.base) + place.channel);
#pragma unroll 2
  for (int n = 0; n < place.tokens; ++n) {
    const int64_t at = (place.begin + n) * p.width + place.channel;
    Vec8 value = load_vec8(p.value, at, p.dtype);
    const Vec8 first = load_vec8(p.first, at, p.dtype), logits = load_vec8(p.logits, at, p.dtype);
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const LaneSigmoid share(logits.at[c] + base.at[c]);
      value.at[c] += (first.at[c] - value.at[c]) * share.of_z;
    }
    store_vec8(p.v, at, p.dtype, value);
  }
}

// What it computes: gvalue, gfirst, glogits and, per four blocks of tokens, the sum for base.
// What a thread owns: 8 channels of 16 tokens.
// What it gave up: lanes idle where the width is no multiple of 256.
__global__ void __launch_bounds__(kRunThreads)
    value_residual_backward_kernel(const __grid_constant__ ValueResidualBackward p) {
  DYNAMIC_SHARED(shared);
  const RunPlace place(p.batch, p.time, p.width);
  Vec8 base{}, gbase{};
  if (place.has_channels) base = load_floats(static_cast<const float*>(p.base) + place.channel);
  const int tokens = place.has_channels ? place.tokens : 0;
#pragma unroll 1
  for (int n = 0; n < tokens; ++n) {
    const int64_t at = (place.begin + n) * p.width + place.channel;
    Vec8 gv = load_vec8(p.gv, at, p.dtype), value = load_vec8(p.value, at, p.dtype);
    const Vec8 gagain = p.gagain == nullptr ? Vec8{} : load_vec8(p.gagain, at, p.dtype);
    Vec8 gfirst = p.gcarry == nullptr ? Vec8{} : load_vec8(p.gcarry, at, p.dtype);
    const Vec8 first = load_vec8(p.first, at, p.dtype), logits = load_vec8(p.logits, at, p.dtype);
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const LaneSigmoid share(logits.at[c] + base.at[c]);
      gv.at[c] += gagain.at[c];
      const float gz = gv.at[c] * (first.at[c] - value.at[c]) * share.slope();
      gfirst.at[c] += gv.at[c] * share.of_z;
      gv.at[c] *= share.of_minus_z;
      value.at[c] = gz;
      gbase.at[c] += gz;
    }
    store_vec8(p.gvalue, at, p.dtype, gv);
    store_vec8(p.gfirst, at, p.dtype, gfirst);
    store_vec8(p.glogits, at, p.dtype, value);
  }
  join_runs(reinterpret_cast<float*>(shared), gbase,
            static_cast<float*>(p.sums) + place.piece * p.width + place.channel,
            place.has_channels);
}

namespace {

bool is_served(const ValueResidualSizes& p) {
  return p.dtype != DType::kDouble && p.width % kVec8 == 0;
}

}  // namespace
}  // namespace rwkv

int rwkv_value_residual_forward_cuda(const rwkv::ValueResidualForward& params, void* stream) {
  using namespace rwkv;
  if (!is_served(params)) return kUnsupported;
  return launch(value_residual_forward_kernel, run_blocks(params.batch, params.time, params.width),
                kRunThreads, 0, stream, params);
}

int rwkv_value_residual_backward_cuda(const rwkv::ValueResidualBackward& params, void* stream) {
  using namespace rwkv;
  if (!is_served(params)) return kUnsupported;
  const int code =
      launch(value_residual_backward_kernel, run_blocks(params.batch, params.time, params.width),
             kRunThreads, kRunSharedBytes, stream, params);
  if (code != 0) return code;
  return join_pieces(static_cast<float*>(params.sums), run_pieces(params.batch, params.time),
                     params.width, static_cast<float*>(params.total), stream);
}
