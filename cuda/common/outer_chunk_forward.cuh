// Forward pass of RWKV-5 and 6 by chunks of 16 tokens on tensor cores; the formulas:
// outer_chunk.cuh.
#pragma once

#include "chunk_walk.cuh"
#include "outer_chunk.cuh"

namespace rwkv {

// K^ is split for the sake of the decay's gradient, which rests on the states.
using OuterChunkForwardShared = ChunkForwardShared<OuterChunkShared<
    ChunkTile::ByRows, ChunkTile::ByColumns::With<Held::kSplit>, ChunkTile::ByRows>>;

// Of the forward or of the replay kernel; kOutput false leaves out y.
template <bool kDecayPerToken, bool kOutput>
struct OuterChunkForwardBlock : ChunkBlock<OuterForward, OuterChunkForwardShared> {
  static constexpr bool kWithOutput = kOutput, kWithSquares = kOutput;
  using ChunkBlock::ChunkBlock;

  __device__ void fetch(int64_t t, int tokens) const {
    shared.template fetch<kDecayPerToken, kWithOutput>(p, place, t, tokens);
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) const {
    shared.template form_operands<kDecayPerToken, kWithOutput>(p, place, t, tokens, nullptr);
  }
  __device__ __forceinline__ void form_squares() const { shared.form_square(); }

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

}  // namespace rwkv
