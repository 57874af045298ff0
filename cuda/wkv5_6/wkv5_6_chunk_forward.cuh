// Forward pass of RWKV-5 and 6 by chunks of 16 tokens on tensor cores; the formulas:
// wkv5_6_chunk.cuh.
#pragma once

#include "../common/gpu_chunks/chunk_walk.cuh"
#include "wkv5_6_chunk.cuh"

namespace rwkv {

template <bool kOutput> using Wkv5_6ChunkForwardShared =
    ChunkForwardShared<Wkv5_6ChunkShared<kOutput ? Wkv5_6Parts::kAll : Wkv5_6Parts::kStates>>;

// Of the forward or of the replay kernel; kOutput false skips y.
template <bool kDecayPerToken, bool kOutput> struct Wkv5_6ChunkForwardBlock
    : ChunkBlock<Wkv5_6Forward, Wkv5_6ChunkForwardShared<kOutput>> {
  using Base = ChunkBlock<Wkv5_6Forward, Wkv5_6ChunkForwardShared<kOutput>>;
  using Base::Base, Base::lane, Base::p, Base::place, Base::shared, Base::warp;
  using typename Base::Tile;
  // The square is formed while advancing, by warps that need it only at the end.
  static constexpr bool kWithOutput = kOutput, kWithSquares = false;

  __device__ void fetch(int64_t t, int tokens, int turn) const {
    shared.template fetch<kDecayPerToken>(p, ChunkFetch(place, t, tokens), turn);
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) const {
    shared.template form_operands<kDecayPerToken>(p, place, t, tokens);
  }
  // Of the chain kernel, which has no y.
  __device__ void form_squares(int64_t) const {}

  __device__ __forceinline__ void advance(Tile::State& S, int turn) const {
    Accumulator y[2];
    if constexpr (kWithOutput) {
      shared.form_square();
      clear(y[0]), clear(y[1]);
#pragma unroll
      for (int i = 0; i < Tile::kKeyTiles; i += 2) {
        add_keys(y, split_left(S[i], S[i + 1]), shared.r, i * 8, lane);
      }
      scale_tokens(y, shared.documents.first, lane);
      __syncthreads();
    }
    LeftOperand v = shared.v(turn).left_transposed(0, warp * 16, lane);
    if constexpr (kWithOutput) {
      add_lower(y, v, shared.square, lane);
      // Every warp reads its own values only, and all its lanes have done so.
      place_own_values(y, shared.v(turn), lane);
    }
    cut_documents(S, shared.documents, shared.documents.last, lane, v);
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; i += 2) {
      shared.scale_keys(S, i, lane);
      add_tokens(S, i, v, shared.k, lane);
    }
  }
};

}  // namespace rwkv
