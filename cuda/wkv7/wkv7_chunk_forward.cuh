// Forward pass of RWKV-7 by chunks of 16 tokens on tensor cores; the formulas: wkv7_chunk.cuh.
#pragma once

#include "../common/gpu_chunks/chunk_walk.cuh"
#include "wkv7_chunk.cuh"

namespace rwkv {

using Wkv7ChunkForwardShared = ChunkForwardShared<Wkv7ChunkShared>;

// kOutput false skips y.
template <bool kOutput>
struct Wkv7ChunkForwardBlock : ChunkBlock<Wkv7Forward, Wkv7ChunkForwardShared> {
  static constexpr bool kWithOutput = kOutput, kWithSquares = true;
  using ChunkBlock::ChunkBlock;

  __device__ void fetch(int64_t t, int tokens, int turn) const {
    shared.template fetch<kWithOutput, true>(p, ChunkFetch(place, t, tokens), turn);
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) const {
    shared.template form_operands<kWithOutput, true>(p, place, t, tokens, nullptr);
    if constexpr (kWithOutput) {
      if (p.bonus != nullptr) write_bonus(t, tokens);
    }
  }
  __device__ __forceinline__ void form_squares(int64_t t) const {
    shared.template form_squares<kWithOutput, true>(t);
  }

  __device__ __forceinline__ void advance(Tile::State& S, int turn) const {
    const ChunkDocuments& documents = shared.documents;
    Accumulator z[2], u[2], y[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) clear(z[n]), clear(u[n]), clear(y[n]);
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; i += 2) {
      const Split<LeftOperand> state = split_left(S[i], S[i + 1]);
      add_keys(z, state, shared.a, i * 8, lane);
      if constexpr (kWithOutput) add_keys(y, state, shared.r, i * 8, lane);
    }
    scale_tokens(z, documents.first, lane);
    LeftOperand v = shared.v(turn).left_transposed(0, warp * 16, lane);
    add_lower(z, v, shared.ak, lane);
    add_lower(u, split_left(z[0], z[1]), shared.inverse, lane);
    Split<LeftOperand> used = split_left(u[0], u[1]);
    if constexpr (kWithOutput) {
      scale_tokens(y, documents.first, lane);
      add_lower(y, v, shared.rk, lane);
      add_lower(y, used, shared.rb, lane);
      // Every warp reads its own values only, and all its lanes have done so.
      __syncwarp();
      place_own_values(y, shared.v(turn), lane);
    }
    cut_documents(S, documents, documents.last, lane, v, used);
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; i += 2) {
      add_tokens(S, i, v, shared.k, lane);
      add_tokens(S, i, used, shared.b, lane);
      shared.scale_keys(S, i, lane);
    }
  }

 private:
  // s: eight threads have a token.
  __device__ __forceinline__ void write_bonus(int64_t t, int tokens) const {
    constexpr int kPerToken = kN / kVec8;
    const int token = Tile::thread() / kPerToken, key = Tile::thread() % kPerToken * kVec8;
    float s = 0.0f;
#pragma unroll
    for (int i = 0; i < kVec8; i += 4) {
      const float4 r = widen_vec4(shared.raw_r.at(token, key) + i);
      const float4 k = widen_vec4(shared.raw_k.at(token, key) + i);
      const auto* const bonus = static_cast<const float*>(p.bonus) + place.head * kN + key + i;
      s += sum_of(times(times(r, k), load_vec4(bonus)));
    }
    s = sum_over_lanes<kPerToken>(s);
    if (key == 0 && token < tokens) static_cast<float*>(p.s)[place.number(t + token)] = s;
  }
};

}  // namespace rwkv
