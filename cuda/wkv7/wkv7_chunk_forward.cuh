// Forward pass of RWKV-7 by chunks of 16 tokens on tensor cores; the formulas: wkv7_chunk.cuh.
#pragma once

#include "../common/chunk_walk.cuh"
#include "wkv7_chunk.cuh"

namespace rwkv {

using Wkv7ChunkForwardShared =
    ChunkForwardShared<Wkv7ChunkShared<ChunkTile::ByRows, ChunkTile::ByColumns>>;

// Of the forward or of the replay kernel; kOutput false leaves out y.
template <bool kOutput>
struct Wkv7ChunkForwardBlock : ChunkBlock<Wkv7Forward, Wkv7ChunkForwardShared> {
  static constexpr bool kWithOutput = kOutput, kWithSquares = true;
  using ChunkBlock::ChunkBlock;

  __device__ void fetch(int64_t t, int tokens) const {
    shared.template fetch<kWithOutput>(p, ChunkFetch(place, t, tokens));
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) const {
    shared.template form_operands<kWithOutput>(p.reset, place, p.dtype, t, tokens, nullptr);
  }
  __device__ __forceinline__ void form_squares() const {
    shared.template form_squares<kWithOutput>();
  }

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

 private:
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

}  // namespace rwkv
