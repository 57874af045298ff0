// How the gradient of RWKV-7's state passes a chunk backwards, and the block of the chain kernel,
// which needs no more than that; names and formulas: wkv7_chunk_backward.cuh.
#pragma once

#include "../common/gpu_chunks/chunk_walk.cuh"
#include "wkv7_chunk.cuh"

namespace rwkv {

// Shared memory of what takes the state's gradient through a chunk.
struct Wkv7ChunkGradientOperands : Wkv7ChunkShared {
  InTurn<ExactRows> gys;  // dY

  __host__ __device__ explicit Wkv7ChunkGradientOperands(Pieces& pieces,
                                                         int mix_floats = kMixFloats)
      : Wkv7ChunkShared(pieces, mix_floats), gys(pieces) {}

  __device__ ExactRows gy(int turn) const { return gys.of(turn); }
};
using Wkv7ChunkChainShared = ChunkForwardShared<Wkv7ChunkGradientOperands>;

// How the state's gradient passes a chunk.
template <class SharedType> struct Wkv7ChunkGradientBlock : ChunkBlock<Wkv7Backward, SharedType> {
  using Base = ChunkBlock<Wkv7Backward, SharedType>;
  using Base::Base, Base::lane, Base::p, Base::place, Base::shared, Base::warp;
  using typename Base::Tile;

  template <bool kWithK>
  __device__ __forceinline__ void fetch_rows(int64_t t, int tokens, int turn) const {
    const ChunkFetch chunk(place, t, tokens);
    shared.template fetch<true, kWithK>(p, chunk, turn);
    chunk.copy(shared.gy(turn), p.gy);
  }
  __device__ __forceinline__ LeftOperand own_gy(int turn) const {
    return shared.gy(turn).left_transposed(0, warp * 16, lane);
  }

  // dZ of the warp's values, from dU less what reads D: gu is B- D^T.
  __device__ __forceinline__ Split<LeftOperand> find_gz(Accumulator (&gu)[2],
                                                        const LeftOperand& gy) const {
    Accumulator z[2];
    clear(z[0]), clear(z[1]);
    scale_tokens(gu, shared.documents.last, lane);
    add_upper(gu, gy, shared.rb, lane);
    add_upper(z, split_left(gu[0], gu[1]), shared.inverse, lane);
    return split_left(z[0], z[1]);
  }

  // G, so far D, becomes dS0.
  __device__ __forceinline__ void pass_gradient(Tile::State& G, LeftOperand gy,
                                                Split<LeftOperand> gz) const {
    cut_documents(G, shared.documents, shared.documents.first, lane, gy, gz);
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; i += 2) {
      add_tokens(G, i, gy, shared.r, lane);
      add_tokens(G, i, gz, shared.a, lane);
    }
  }
};

// Of the chain kernel: the state's gradient alone.
struct Wkv7ChunkChainBlock : Wkv7ChunkGradientBlock<Wkv7ChunkChainShared> {
  using Wkv7ChunkGradientBlock::Wkv7ChunkGradientBlock;

  __device__ void fetch(int64_t t, int tokens, int turn) const {
    fetch_rows<false>(t, tokens, turn);
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) const {
    shared.form_operands<true, false>(p, place, t, tokens, nullptr);
  }
  __device__ __forceinline__ void form_squares(int64_t t) const {
    shared.form_squares<true, false>(t);
  }
  __device__ __forceinline__ void advance(Tile::State& G, int turn) const {
    Accumulator gu[2];
    clear(gu[0]), clear(gu[1]);
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; i += 2) {
      shared.scale_keys(G, i, lane);
      add_keys(gu, split_left(G[i], G[i + 1]), shared.b, i * 8, lane);
    }
    const LeftOperand gy = own_gy(turn);
    pass_gradient(G, gy, find_gz(gu, gy));
  }
};

}  // namespace rwkv
