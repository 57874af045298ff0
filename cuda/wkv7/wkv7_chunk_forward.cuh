// Forward pass of RWKV-7 by chunks of 16 tokens on tensor cores; the formulas: wkv7_chunk.cuh.
#pragma once

#include "wkv7_chunk.cuh"

namespace rwkv {

struct Wkv7ChunkForwardShared : Wkv7ChunkShared<ChunkTile::ByRows, ChunkTile::ByColumns> {
  int bytes;

  __host__ __device__ explicit Wkv7ChunkForwardShared(unsigned char* base)
      : Wkv7ChunkForwardShared(Pieces(base)) {}

 private:
  __host__ __device__ explicit Wkv7ChunkForwardShared(Pieces pieces)
      : Wkv7ChunkShared(pieces), bytes(pieces.used()) {}
};

// What a block of the forward or of the replay kernel does; kWithOutput false leaves out y.
template <bool kWithOutput> struct Wkv7ChunkForwardBlock {
  using Tile = ChunkTile;
  static constexpr int kN = Tile::kN, kChunk = Tile::kChunk;

  const Wkv7Forward& p;
  const HeadPlace<Tile> place;
  const Wkv7ChunkForwardShared shared;
  const int lane;

  __device__ Wkv7ChunkForwardBlock(const Wkv7Forward& p, int64_t block, unsigned char* base)
      : p(p), place(p, block), shared(base), lane(lane_number()) {}

  // S: the state before the range on entry, after it on return. keep: where states are to be kept,
  // the first one that before the range.
  __device__ __forceinline__ void scan(Tile::State& S, const TokenRange& range,
                                       const StatesAt<float*>& keep) const {
    float* kept = keep.base == nullptr ? nullptr : keep.of(place, range.begin);
    int64_t next_kept = kept == nullptr ? range.end : range.begin;
    fetch(range, range.begin);
    for (int64_t t = range.begin; t < range.end; t += kChunk) {
      const int tokens = range.tokens_from<kChunk>(t);
      if (t == next_kept) {
        Tile::store_state(S, kept);
        kept += kN * kN, next_kept += keep.every;
      }
      wait_for_copies();
      __syncthreads();
      shared.template form_operands<kWithOutput>(p.reset, place, p.dtype, t, tokens, nullptr);
      __syncthreads();
      if (t + kChunk < range.end) fetch(range, t + kChunk);
      shared.template form_squares<kWithOutput>();
      __syncthreads();
      advance(S);
      if constexpr (kWithOutput) {
        __syncthreads();
        write_rows(p.y, shared.v, place, p.dtype, t, tokens);
      }
    }
  }

 private:
  __device__ void fetch(const TokenRange& range, int64_t t) const {
    const ChunkFetch chunk(place, t, range.tokens_from<kChunk>(t));
    shared.template fetch<kWithOutput>(p, chunk);
    commit_copies();
  }

  // S goes on by a chunk; y takes the place of v.
  __device__ __forceinline__ void advance(Tile::State& S) const {
    const ChunkDocuments& documents = shared.documents;
    LeftOperand v[2], used[2];
    load_own_values(v, shared.v, lane);
    Accumulator z[2], u[2];
    multiply_state(z, S, shared.a, documents.first, lane);
    add_lower(z, v, shared.ak(), lane);
    used[0] = as_left(z[0]), used[1] = as_left(z[1]);
    clear(u[0]), clear(u[1]);
    add_lower(u, used, shared.inverse, lane);
    used[0] = as_left(u[0]), used[1] = as_left(u[1]);
    if constexpr (kWithOutput) {
      Accumulator y[2];
      multiply_state(y, S, shared.r, documents.first, lane);
      add_lower(y, v, shared.rk(), lane);
      add_lower(y, used, shared.rb(), lane);
      // Every warp reads its own values only, and all its lanes have done so.
      __syncwarp();
      place_own_values<false>(y, shared.v, lane);
    }
    keep_tokens(v, documents.last, lane);
    keep_tokens(used, documents.last, lane);
    add_tokens(S, v, used);
  }

  __device__ __forceinline__ void add_tokens(Tile::State& S, const LeftOperand (&v)[2],
                                             const LeftOperand (&u)[2]) const {
    const bool cut = shared.documents.cut();
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; ++i) {
      if (cut) clear(S[i]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add(S[i], v[n], shared.k.from(n * 8, i * 8).right(lane));
        multiply_add(S[i], u[n], shared.b.from(n * 8, i * 8).right(lane));
      }
      const float2 grown = load_two(shared.growth + kChunk * kN + i * 8 + lane % 4 * 2);
      scale_columns(S[i], grown.x, grown.y);
    }
  }
};

// What it computes: y, the final state and, for the backward pass, the state at every keep_every-th
// token. What a thread owns: 32 numbers of one head's state, a warp 16 values and all keys.
// What it gave up: fp32 operands (tf32 has 10 bits behind the point), and head sizes other than 64.
static __global__ void __launch_bounds__(ChunkTile::kThreads, 4)
    wkv7_chunk_forward_kernel(const __grid_constant__ Wkv7Forward p) {
  DYNAMIC_SHARED(base);
  const Wkv7ChunkForwardBlock<true> block(p, blockIdx.x, base);
  const int64_t at = block.place.state();
  const auto* state = static_cast<const float*>(p.state);
  ChunkTile::State S;
  ChunkTile::load_state(S, state == nullptr ? nullptr : state + at);
  block.scan(S, {0, p.time}, {static_cast<float*>(p.checkpoints), p.keep_every, p.kept, 0});
  ChunkTile::store_state(S, static_cast<float*>(p.final_state) + at);
}

// What it computes: the states before every chunk of the range, from those that the forward pass
// kept. What a thread owns: as in the forward kernel, for the tokens between two kept states.
// What it gave up: nothing but memory; all kept states of the range are started from at once.
static __global__ void __launch_bounds__(ChunkTile::kThreads, 4)
    wkv7_chunk_replay_kernel(const __grid_constant__ Wkv7Forward p, TokenRange range,
                             StatesAt<const float*> from, StatesAt<float*> to) {
  DYNAMIC_SHARED(base);
  const int64_t segments = ceil_div(range.end - range.begin, from.every);
  const int64_t begin = range.begin + blockIdx.x % segments * from.every;
  const int64_t end = begin + from.every < range.end ? begin + from.every : range.end;
  const Wkv7ChunkForwardBlock<false> block(p, blockIdx.x / segments, base);
  ChunkTile::State S;
  ChunkTile::load_state(S, from.of(block.place, begin));
  block.scan(S, {begin, end}, to);
}

}  // namespace rwkv
