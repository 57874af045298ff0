// CUDA kernels of RWKV-7's keys: the formulas of keys_cpu.cpp.
//
// A head lies in size / 8 neighbouring lanes of a warp, so that its sums are shuffles. Backwards the
// sums for the parameters stay in registers over the tokens of a warp. The parameters themselves
// come from the first-level cache at every token: in registers they would cost warps.
#include "keys_cuda.h"

#include "../common/gpu/lane_sigmoid.cuh"
#include "../common/gpu/token_runs.cuh"
#include "../common/gpu/warp_reduce.cuh"

namespace rwkv {

static_assert(kKeysJoinedBlocks == kJoinedBlocks);

__device__ __forceinline__ Vec8 load_keys(const void* from, int64_t at, DType dtype, bool there) {
  return from != nullptr && there ? load_vec8(from, at, dtype) : Vec8{};
}

__device__ __forceinline__ Vec8 load_vector(const void* from, const RunPlace& place) {
  return place.has_channels ? load_floats(static_cast<const float*>(from) + place.channel) : Vec8{};
}

// 1 / max(length, kShortestKey) of a head, and whether the length is what counts.
struct KeyScale {
  float inverse;
  bool is_normal;

  __device__ __forceinline__ explicit KeyScale(float squares) {
    const float length = sqrtf(squares), shortest = static_cast<float>(kShortestKey);
    is_normal = length >= shortest;
    inverse = 1.0f / (length < shortest ? shortest : length);
  }
};

// What it computes: k, a and b.
// What a thread owns: 8 channels of 16 tokens.
// What it gave up: lanes idle where the width is no multiple of 256.
template <int kLanes>
__global__ void __launch_bounds__(kRunThreads)
    keys_forward_kernel(const __grid_constant__ KeysForward p) {
  const int64_t width = p.heads * p.size;
  const RunPlace place(p.batch, p.time, width);
#pragma unroll 1
  for (int n = 0; n < place.tokens; ++n) {
    const int64_t at = (place.begin + n) * width + place.channel;
    Vec8 key = load_keys(p.key, at, p.dtype, place.has_channels);
    Vec8 logits = load_keys(p.logits, at, p.dtype, place.has_channels);
    const Vec8 removal = load_vector(p.removal, place);
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const float x = key.at[c] * removal.at[c];
      squares += x * x;
    }
    const KeyScale scale(sum_over_lanes<kLanes>(squares));
    const Vec8 replacement = load_vector(p.replacement, place);
    add_vec8(logits, load_vector(p.base, place));
    Vec8 a;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const LaneSigmoid rate(logits.at[c]);
      const float unit = key.at[c] * removal.at[c] * scale.inverse;
      a.at[c] = -unit, logits.at[c] = unit * rate.of_z;
      key.at[c] *= 1.0f - rate.of_minus_z * replacement.at[c];
    }
    if (!place.has_channels) continue;
    store_vec8(p.k, at, p.dtype, key);
    store_vec8(p.a, at, p.dtype, a);
    store_vec8(p.b, at, p.dtype, logits);
  }
}

// What it computes: gkey, glogits and, per four blocks of tokens, the sums for the parameters.
// What a thread owns: 8 channels of 16 tokens.
// What it gave up: lanes idle where the width is no multiple of 256; a sigmoid is found twice, so
// that no more than the sums and one token stay in registers.
template <int kLanes>
__global__ void __launch_bounds__(kRunThreads, 1)
    keys_backward_kernel(const __grid_constant__ KeysBackward p) {
  DYNAMIC_SHARED(shared);
  const int64_t width = p.heads * p.size;
  const RunPlace place(p.batch, p.time, width);
  Vec8 gbase{}, gremoval{}, greplacement{};
#pragma unroll 1
  for (int n = 0; n < place.tokens; ++n) {
    const int64_t at = (place.begin + n) * width + place.channel;
    const auto load = [&](const void* from) {
      return load_keys(from, at, p.dtype, place.has_channels);
    };
    const Vec8 key = load(p.key), gk = load(p.gk), ga = load(p.ga), gb = load(p.gb);
    const Vec8 removal = load_vector(p.removal, place);
    Vec8 logits = load(p.logits);
    add_vec8(logits, load_vector(p.base, place));
    float squares = 0.0f, products = 0.0f;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const float x = key.at[c] * removal.at[c];
      squares += x * x;
      products += x * (LaneSigmoid(logits.at[c]).of_z * gb.at[c] - ga.at[c]);
    }
    const KeyScale scale(sum_over_lanes<kLanes>(squares));
    products = sum_over_lanes<kLanes>(products);
    const float dot = scale.is_normal ? products * scale.inverse : 0.0f;
    const Vec8 replacement = load_vector(p.replacement, place);
    Vec8 gkey;
#pragma unroll
    for (int c = 0; c < kVec8; ++c) {
      const LaneSigmoid rate(logits.at[c]);
      const float x = key.at[c], unit = x * removal.at[c] * scale.inverse;
      const float gp = (rate.of_z * gb.at[c] - ga.at[c] - unit * dot) * scale.inverse;
      const float through = unit * gb.at[c] + x * replacement.at[c] * gk.at[c];
      const float gz = through * rate.slope();
      gkey.at[c] = gk.at[c] * (1.0f - rate.of_minus_z * replacement.at[c]) + gp * removal.at[c];
      gbase.at[c] += gz;
      gremoval.at[c] += gp * x;
      greplacement.at[c] -= gk.at[c] * x * rate.of_minus_z;
      logits.at[c] = gz;
    }
    if (!place.has_channels) continue;
    store_vec8(p.gkey, at, p.dtype, gkey);
    store_vec8(p.glogits, at, p.dtype, logits);
  }
  float* const sums = reinterpret_cast<float*>(shared);
  float* const to =
      static_cast<float*>(p.sums) + place.piece * kKeysVectors * width + place.channel;
  join_runs(sums, gbase, to, place.has_channels);
  join_runs(sums, gremoval, to + width, place.has_channels);
  join_runs(sums, greplacement, to + 2 * width, place.has_channels);
}

}  // namespace rwkv

int rwkv_keys_forward_cuda(const rwkv::KeysForward& params, void* stream) {
  using namespace rwkv;
  const int64_t blocks = run_blocks(params.batch, params.time, params.heads * params.size);
  return with_head_lanes(params, [&]<int kLanes>() {
    return launch(keys_forward_kernel<kLanes>, blocks, kRunThreads, 0, stream, params);
  });
}

int rwkv_keys_backward_cuda(const rwkv::KeysBackward& params, void* stream) {
  using namespace rwkv;
  const int64_t width = params.heads * params.size;
  const int code = with_head_lanes(params, [&]<int kLanes>() {
    return launch(keys_backward_kernel<kLanes>, run_blocks(params.batch, params.time, width),
                  kRunThreads, kRunSharedBytes, stream, params);
  });
  if (code != 0) return code;
  return join_pieces(static_cast<float*>(params.sums), run_pieces(params.batch, params.time),
                     kKeysVectors * width, static_cast<float*>(params.total), stream);
}
