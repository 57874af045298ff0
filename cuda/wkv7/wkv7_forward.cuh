// Forward pass of RWKV-7 as a scan over tokens. Per head, S indexed [value j][key i]:
//
//   u[j] = sum_i S[j][i] a[i]      S[j][i] <- S[j][i] d[i] + u[j] b[i] + v[j] k[i]
//   y[j] = sum_i S[j][i] r[i]                                      y reads the new S
//
// A document start needs no branch in the scan: there a and d are staged as zero, so that nothing
// of the old state remains. (An infinite old state would still spread.)
#pragma once

#include "../common/gpu_scan/head_place.cuh"
#include "wkv7.h"
#include "wkv7_decay.cuh"

namespace rwkv {

// A chunk of tokens in shared memory: as fetched, and widened to fp32 for the scan.
template <class TileType> struct Wkv7ForwardShared {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kChunk = TileType::kChunk;

  float *r, *d, *k, *a, *b;  // [kChunk][kN]
  float *v, *y;              // [kChunk][kRows]
  unsigned char *raw_r, *raw_k, *raw_a, *raw_b, *raw_v, *raw_w;
  int bytes;

  __host__ __device__ Wkv7ForwardShared(unsigned char* base, DType dtype) {
    Pieces pieces(base);
    for (float** keys : {&r, &d, &k, &a, &b}) *keys = pieces.floats(kChunk * kN);
    for (float** values : {&v, &y}) *values = pieces.floats(kChunk * kRows);
    const int width = element_bytes(dtype);
    for (unsigned char** raw : {&raw_r, &raw_k, &raw_a, &raw_b}) {
      *raw = pieces.bytes(kChunk * kN * width);
    }
    raw_v = pieces.bytes(kChunk * kRows * width);
    raw_w = pieces.bytes(kChunk * kN * 4);
    bytes = pieces.used();
  }
};

// What a block of the forward or of the replay kernel does; kWithOutput false leaves out y.
template <class TileType, bool kWithOutput> struct Wkv7ForwardBlock {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kR = TileType::kR;
  static constexpr int kC = TileType::kC, kKeyLanes = TileType::kKeyLanes;
  static constexpr int kThreads = TileType::kThreads, kChunk = TileType::kChunk;
  using State = float[kR][kC];

  const Wkv7Forward& p;
  const HeadPlace<TileType> place;
  const Wkv7ForwardShared<TileType> shared;
  const TileType tile;

  __device__ Wkv7ForwardBlock(const Wkv7Forward& p, int64_t block, unsigned char* base)
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
      widen(t, tokens);
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
    place.fetch_keys(shared.raw_a, p.a, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_b, p.b, p.dtype, t, tokens);
    place.fetch_values(shared.raw_v, p.v, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_w, p.w, DType::kFloat, t, tokens);
    commit_copies();
  }

  __device__ void widen(int64_t t, int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kN / kVec8; n += kThreads) {
      const int at = n * kVec8;
      const bool starts = place.starts(p.reset, t + Vec8Place<kN>(n).token);
      const Vec8 zero = Vec8::of(0.0f);
      const Vec8 w = load_vec8(shared.raw_w, at, DType::kFloat);
      store_floats(shared.d + at, starts ? zero : wkv7_decay(w).decay);
      store_floats(shared.a + at, starts ? zero : load_vec8(shared.raw_a, at, p.dtype));
      store_floats(shared.k + at, load_vec8(shared.raw_k, at, p.dtype));
      store_floats(shared.b + at, load_vec8(shared.raw_b, at, p.dtype));
      if constexpr (kWithOutput) store_floats(shared.r + at, load_vec8(shared.raw_r, at, p.dtype));
    }
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kRows / kVec8; n += kThreads) {
      store_floats(shared.v + n * kVec8, load_vec8(shared.raw_v, n * kVec8, p.dtype));
    }
  }

  // Token n of the chunk.
  __device__ __forceinline__ void step(State& S, int n) const {
    float d[kC], k[kC], a[kC], b[kC], v[kR], u[kR] = {};
    tile.load_keys(a, shared.a + n * kN);
    tile.load_keys(d, shared.d + n * kN);
    tile.load_keys(b, shared.b + n * kN);
    tile.load_keys(k, shared.k + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) u[i] += S[i][c] * a[c];
    }
    reduce_scatter<kR, kKeyLanes, 1>(u, tile.lane);
    all_gather<kR, kKeyLanes>(u, u[0], tile.lane);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) S[i][c] = S[i][c] * d[c] + u[i] * b[c] + v[i] * k[c];
    }
    if constexpr (kWithOutput) {
      float r[kC], y[kR] = {};
      tile.load_keys(r, shared.r + n * kN);
#pragma unroll
      for (int i = 0; i < kR; ++i) {
#pragma unroll
        for (int c = 0; c < kC; ++c) y[i] += S[i][c] * r[c];
      }
      tile.store_row_sums(y, shared.y + n * kRows);
    }
  }

  __device__ void write_outputs(int64_t t, int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kRows / kVec8; n += kThreads) {
      const Vec8Place<kRows> vec(n);
      store_vec8(p.y, place.token(t + vec.token) + place.slice * kRows + vec.at, p.dtype,
                 load_floats(shared.y + n * kVec8));
    }
  }
};

// What it computes: y, the final state and, for the backward pass, the state at every
// checkpoint_interval-th token. What a thread owns: kR values x kC keys of one head's state, in
// registers, for all tokens. What it gave up: parallelism over time, and tensor cores; few heads
// leave the card idle.
template <class TileType>
__global__ void __launch_bounds__(TileType::kThreads, 512 / TileType::kThreads)
    wkv7_forward_kernel(const __grid_constant__ Wkv7Forward p) {
  DYNAMIC_SHARED(base);
  const Wkv7ForwardBlock<TileType, true> block(p, blockIdx.x, base);
  const int64_t at = block.place.state();
  const auto* state = static_cast<const float*>(p.state);
  float S[TileType::kR][TileType::kC];
  block.tile.load_state(S, state == nullptr ? nullptr : state + at);
  block.scan(S, {0, p.time},
             {static_cast<float*>(p.checkpoints), p.checkpoint_interval, p.kept, 0});
  block.tile.store_state(S, static_cast<float*>(p.final_state) + at);
}

// What it computes: the states before every chunk of the range, from those that the forward pass
// kept. What a thread owns: kR values x kC keys of one head's state, for the tokens between two
// kept ones. What it gave up: nothing but memory; all kept states of the range are started from at
// once.
template <class TileType>
__global__ void __launch_bounds__(TileType::kThreads, 512 / TileType::kThreads)
    wkv7_replay_kernel(const __grid_constant__ Wkv7Forward p, TokenRange range,
                       StatesAt<const float*> from, StatesAt<float*> to) {
  DYNAMIC_SHARED(base);
  const int64_t segments = ceil_div(range.end - range.begin, from.every);
  const int64_t begin = range.begin + blockIdx.x % segments * from.every;
  const int64_t end = begin + from.every < range.end ? begin + from.every : range.end;
  const Wkv7ForwardBlock<TileType, false> block(p, blockIdx.x / segments, base);
  float S[TileType::kR][TileType::kC];
  block.tile.load_state(S, from.of(block.place, begin));
  block.scan(S, {begin, end}, to);
}

}  // namespace rwkv
