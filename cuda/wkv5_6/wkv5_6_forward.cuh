// Forward pass of RWKV-5 and 6 as a scan over tokens. Per head, S indexed [value j][key i]:
//
//   y[j] = sum_i r[i] (S[j][i] + u[i] k[i] v[j])        S[j][i] <- d[i] S[j][i] + k[i] v[j]
//
// A document start needs no branch in the scan: there r and d are staged as zero, so that y does
// not see the old state and the new one does not keep it. (An infinite old state would still
// spread.)
#pragma once

#include "../common/gpu_scan/head_place.cuh"
#include "wkv5_6_decay.cuh"
#include "wkv5_6_params.h"

namespace rwkv {

// A chunk of tokens in shared memory: as fetched, and widened to fp32 for the scan.
template <class TileType> struct Wkv5_6ForwardShared {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kChunk = TileType::kChunk;

  float *r, *k, *d;  // [kChunk][kN]
  float *v, *y;      // [kChunk][kRows]
  float* bonus;      // [kChunk]: sum_i r u k
  unsigned char *raw_r, *raw_k, *raw_v, *raw_w;
  int bytes;

  __host__ __device__ Wkv5_6ForwardShared(unsigned char* base, DType dtype) {
    Pieces pieces(base);
    for (float** keys : {&r, &k, &d}) *keys = pieces.floats(kChunk * kN);
    for (float** values : {&v, &y}) *values = pieces.floats(kChunk * kRows);
    bonus = pieces.floats(kChunk);
    const int width = element_bytes(dtype);
    for (unsigned char** raw : {&raw_r, &raw_k}) *raw = pieces.bytes(kChunk * kN * width);
    raw_v = pieces.bytes(kChunk * kRows * width);
    raw_w = pieces.bytes(kChunk * kN * 4);
    bytes = pieces.used();
  }
};

// What a block of the forward or of the replay kernel does; kWithOutput false leaves out y.
template <class TileType, bool kDecayPerToken, bool kWithOutput> struct Wkv5_6ForwardBlock {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kR = TileType::kR;
  static constexpr int kC = TileType::kC, kChunk = TileType::kChunk;
  static constexpr int kThreads = TileType::kThreads;
  using State = float[kR][kC];

  const Wkv5_6Forward& p;
  const HeadPlace<TileType> place;
  const Wkv5_6ForwardShared<TileType> shared;
  const TileType tile;

  __device__ Wkv5_6ForwardBlock(const Wkv5_6Forward& p, int64_t block, unsigned char* base)
      : p(p), place(p, block), shared(base, p.dtype) {}

  // S: the state before the range on entry, after it on return. keep: where states are to be kept.
  __device__ __forceinline__ void scan(State& S, const TokenRange& range,
                                       const StatesAt<float*>& keep) const {
    fetch(range.begin, range.tokens_from<kChunk>(range.begin));
    for (int64_t t = range.begin; t < range.end; t += kChunk) {
      const int tokens = range.tokens_from<kChunk>(t);
      if (keep.has(t)) tile.store_state(S, keep.of(place, t));
      wait_for_copies();
      __syncthreads();
      widen_keys(t, tokens);
      widen_values(tokens);
      __syncthreads();
      if (t + kChunk < range.end) fetch(t + kChunk, range.tokens_from<kChunk>(t + kChunk));
      for (int n = 0; n < tokens; ++n) step(S, n);
      if constexpr (kWithOutput) {
        __syncthreads();
        write_outputs(t, tokens);
      }
    }
  }

 private:
  __device__ void fetch(int64_t t, int tokens) const {
    if constexpr (kWithOutput) place.fetch_keys(shared.raw_r, p.r, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_k, p.k, p.dtype, t, tokens);
    place.fetch_values(shared.raw_v, p.v, p.dtype, t, tokens);
    if constexpr (kDecayPerToken) {
      place.fetch_keys(shared.raw_w, p.w, DType::kFloat, t, tokens);
    }
    commit_copies();
  }

  __device__ void widen_keys(int64_t t, int tokens) const {
    constexpr int kVecs = kChunk * kN / kVec8;
    const int64_t head = place.head * kN;
    for (int n = static_cast<int>(threadIdx.x); n < kWholeRounds<kVecs, kThreads>; n += kThreads) {
      const Vec8Place<kN> vec(n);
      const int at = n * kVec8;
      const bool present = vec.token < tokens;
      const bool starts = present && place.starts(p.reset, t + vec.token);
      if (present) {
        store_floats(shared.k + at, load_vec8(shared.raw_k, at, p.dtype));
        const Vec8 w = kDecayPerToken ? load_vec8(shared.raw_w, at, DType::kFloat)
                                      : load_vec8(p.w, head + vec.at, DType::kFloat);
        store_floats(shared.d + at, starts ? Vec8::of(0.0f) : wkv5_6_decay(w).decay);
      }
      if constexpr (kWithOutput) widen_r(vec, at, head, present, starts);
    }
  }

  __device__ void widen_r(const Vec8Place<kN>& vec, int at, int64_t head, bool present,
                          bool starts) const {
    float bonus = 0.0f;
    if (present) {
      const Vec8 r = load_vec8(shared.raw_r, at, p.dtype);
      const Vec8 k = load_vec8(shared.raw_k, at, p.dtype);
      const Vec8 u = load_vec8(p.u, head + vec.at, DType::kFloat);
#pragma unroll
      for (int i = 0; i < kVec8; ++i) bonus += r.at[i] * u.at[i] * k.at[i];
      store_floats(shared.r + at, starts ? Vec8::of(0.0f) : r);
    }
    bonus = sum_over_lanes<Vec8Place<kN>::kPerRow>(bonus);
    if (present && vec.at == 0) shared.bonus[vec.token] = bonus;
  }

  __device__ void widen_values(int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kRows / kVec8; n += kThreads) {
      store_floats(shared.v + n * kVec8, load_vec8(shared.raw_v, n * kVec8, p.dtype));
    }
  }

  // Token n of the chunk.
  __device__ __forceinline__ void step(State& S, int n) const {
    float k[kC], d[kC], v[kR];
    tile.load_keys(k, shared.k + n * kN);
    tile.load_keys(d, shared.d + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
    if constexpr (kWithOutput) {
      float r[kC], y[kR];
      tile.load_keys(r, shared.r + n * kN);
#pragma unroll
      for (int i = 0; i < kR; ++i) {
        y[i] = r[0] * S[i][0];
#pragma unroll
        for (int c = 1; c < kC; ++c) y[i] += r[c] * S[i][c];
      }
      tile.store_row_sums(y, shared.y + n * kRows);
    }
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) S[i][c] = d[c] * S[i][c] + k[c] * v[i];
    }
  }

  __device__ void write_outputs(int64_t t, int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kRows / kVec8; n += kThreads) {
      const Vec8Place<kRows> vec(n);
      Vec8 y = load_floats(shared.y + n * kVec8);
      const Vec8 v = load_floats(shared.v + n * kVec8);
      const float bonus = shared.bonus[vec.token];
#pragma unroll
      for (int i = 0; i < kVec8; ++i) y.at[i] += bonus * v.at[i];
      store_vec8(p.y, place.token(t + vec.token) + place.slice * kRows + vec.at, p.dtype, y);
    }
  }
};

// What it computes: y, the final state and, for the backward pass, the state at every
// checkpoint_interval-th token. What a thread owns: kR values x kC keys of one head's state, in
// registers, for all tokens. What it gave up: parallelism over time, and tensor cores; few heads
// leave the card idle.
template <class TileType, bool kDecayPerToken>
__global__ void __launch_bounds__(TileType::kThreads, 512 / TileType::kThreads)
    wkv5_6_forward_kernel(const __grid_constant__ Wkv5_6Forward p) {
  DYNAMIC_SHARED(base);
  const Wkv5_6ForwardBlock<TileType, kDecayPerToken, true> block(p, blockIdx.x, base);
  const int64_t at = block.place.state();
  const auto* state = static_cast<const float*>(p.state);
  float S[TileType::kR][TileType::kC];
  block.tile.load_state(S, state == nullptr ? nullptr : state + at);
  block.scan(S, {0, p.time},
             {static_cast<float*>(p.checkpoints), p.checkpoint_interval, p.kept, 0});
  block.tile.store_state(S, static_cast<float*>(p.final_state) + at);
}

// What it computes: the states before every chunk of the range, from those that the forward pass
// kept.
// What a thread owns: kR values x kC keys of one head's state, for the tokens between two kept
// ones.
// What it gave up: nothing but memory; all kept states of the range are started from at once.
template <class TileType, bool kDecayPerToken>
__global__ void __launch_bounds__(TileType::kThreads, 512 / TileType::kThreads)
    wkv5_6_replay_kernel(const __grid_constant__ Wkv5_6Forward p, TokenRange range,
                         StatesAt<const float*> from, StatesAt<float*> to) {
  DYNAMIC_SHARED(base);
  const int64_t segments = ceil_div(range.end - range.begin, from.every);
  const int64_t begin = range.begin + blockIdx.x % segments * from.every;
  const int64_t end = begin + from.every < range.end ? begin + from.every : range.end;
  const Wkv5_6ForwardBlock<TileType, kDecayPerToken, false> block(p, blockIdx.x / segments, base);
  float S[TileType::kR][TileType::kC];
  block.tile.load_state(S, from.of(block.place, begin));
  block.scan(S, {begin, end}, to);
}

}  // namespace rwkv
