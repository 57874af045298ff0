// Forward pass of RWKV-5 and 6 by chunks of 16 tokens on tensor cores; the formulas:
// outer_chunk.cuh.
#pragma once

#include "outer_chunk.cuh"

namespace rwkv {

// K^ is split for the sake of the decay's gradient, which rests on the states.
struct OuterChunkForwardShared
    : OuterChunkShared<ChunkTile::ByRows, ChunkTile::ByColumns::With<Held::kSplit>,
                       ChunkTile::ByRows> {
  int bytes;

  __host__ __device__ explicit OuterChunkForwardShared(unsigned char* base)
      : OuterChunkForwardShared(Pieces(base)) {}

 private:
  __host__ __device__ explicit OuterChunkForwardShared(Pieces pieces)
      : OuterChunkShared(pieces), bytes(pieces.used()) {}
};

// What a block of the forward or of the replay kernel does; kWithOutput false leaves out y.
template <bool kDecayPerToken, bool kWithOutput> struct OuterChunkForwardBlock {
  using Tile = ChunkTile;
  static constexpr int kN = Tile::kN, kChunk = Tile::kChunk;

  const OuterForward& p;
  const HeadPlace<Tile> place;
  const OuterChunkForwardShared shared;
  const int lane;

  __device__ OuterChunkForwardBlock(const OuterForward& p, int64_t block, unsigned char* base)
      : p(p), place(p, block), shared(base), lane(lane_number()) {}

  // S: the state before the range on entry, after it on return. keep: where states are to be kept.
  __device__ __forceinline__ void scan(Tile::State& S, const TokenRange& range,
                                       const StatesAt<float*>& keep) const {
    fetch(range, range.begin);
    for (int64_t t = range.begin; t < range.end; t += kChunk) {
      const int tokens = range.tokens_from<kChunk>(t);
      if (keep.has(t)) Tile::store_state(S, keep.of(place, t));
      wait_for_copies();
      __syncthreads();
      shared.template form_operands<kDecayPerToken, kWithOutput>(p, place, t, tokens, nullptr);
      __syncthreads();
      if (t + kChunk < range.end) fetch(range, t + kChunk);
      if constexpr (kWithOutput) {
        shared.form_square();
        __syncthreads();
      }
      advance(S);
      if constexpr (kWithOutput) {
        __syncthreads();
        write_rows(p.y, shared.v, place, p.dtype, t, tokens);
      }
    }
  }

 private:
  __device__ void fetch(const TokenRange& range, int64_t t) const {
    shared.template fetch<kDecayPerToken, kWithOutput>(p, place, t, range.tokens_from<kChunk>(t));
    commit_copies();
  }

  // S goes on by a chunk; y takes the place of v.
  __device__ __forceinline__ void advance(Tile::State& S) const {
    LeftOperand v[2];
    load_own_values(v, shared.v, lane);
    if constexpr (kWithOutput) {
      Accumulator y[2];
      multiply_state(y, S, shared.r, shared.documents.first, lane);
      add_lower(y, v, shared.square, lane);
      // Every warp reads its own values only, and all its lanes have done so.
      __syncwarp();
      place_own_values<false>(y, shared.v, lane);
    }
    keep_tokens(v, shared.documents.last, lane);
    const bool cut = shared.documents.cut();
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; ++i) {
      const float2 whole = load_two(shared.whole + i * 8 + lane % 4 * 2);
      if (cut) clear(S[i]);
      else scale_columns(S[i], whole.x, whole.y);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add(S[i], v[n], shared.k.from(n * 8, i * 8).right(lane));
      }
    }
  }
};

// What it computes: y, the final state and, for the backward pass, the state at every keep_every-th
// token. What a thread owns: 32 numbers of one head's state, a warp 16 values and all keys.
// What it gave up: fp32 operands of y (tf32 has 10 bits behind the point), and other head sizes.
template <bool kDecayPerToken>
__global__ void __launch_bounds__(ChunkTile::kThreads, 4)
    outer_chunk_forward_kernel(const __grid_constant__ OuterForward p) {
  DYNAMIC_SHARED(base);
  const OuterChunkForwardBlock<kDecayPerToken, true> block(p, blockIdx.x, base);
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
template <bool kDecayPerToken>
__global__ void __launch_bounds__(ChunkTile::kThreads, 4)
    outer_chunk_replay_kernel(const __grid_constant__ OuterForward p, TokenRange range,
                              StatesAt<const float*> from, StatesAt<float*> to) {
  DYNAMIC_SHARED(base);
  const int64_t segments = ceil_div(range.end - range.begin, from.every);
  const int64_t begin = range.begin + blockIdx.x % segments * from.every;
  const int64_t end = begin + from.every < range.end ? begin + from.every : range.end;
  const OuterChunkForwardBlock<kDecayPerToken, false> block(p, blockIdx.x / segments, base);
  ChunkTile::State S;
  ChunkTile::load_state(S, from.of(block.place, begin));
  block.scan(S, {begin, end}, to);
}

}  // namespace rwkv
