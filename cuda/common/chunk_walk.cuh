// How the kernels that go by chunks of 16 tokens on tensor cores walk along a range of tokens: the
// next chunk is fetched while this one is computed. What is done with a chunk is a Block's, a class
// of the operator's derived from ChunkBlock:
//
//   fetch(t, tokens)           starts copies of all that the chunk at token t needs
//   form_operands(t, tokens)   from what was fetched
// and forwards
//   kWithSquares, form_squares()
//   kWithOutput, advance(S)    S goes on by the chunk; y takes the place of v
// or, with gy, raw_gy, before (the state before the chunk) and gv() in shared memory, backwards
//   go_back(G, t, tokens)      G becomes the gradient of the state before the chunk; writes the
//                              other gradients, gv to shared memory
//   write_totals(adds)         at the end, gradients that are sums over the range
#pragma once

#include "chunk_fetch.cuh"
#include "warp_sums.cuh"

namespace rwkv {

// What a thread block has: a head, and shared memory.
template <class ParamsType, class SharedType> struct ChunkBlock {
  using Params = ParamsType;
  using Shared = SharedType;
  using Tile = ChunkTile;
  static constexpr int kN = Tile::kN, kChunk = Tile::kChunk;

  const Params& p;
  const HeadPlace<Tile> place;
  const Shared shared;
  const int lane, warp;

  __device__ ChunkBlock(const Params& p, int64_t block, unsigned char* base)
      : p(p), place(p, block), shared(base), lane(lane_number()), warp(warp_number()) {}
};

// Shared memory of a kernel that needs the operands alone.
template <class Operands> struct ChunkForwardShared : Operands {
  int bytes;

  __host__ __device__ explicit ChunkForwardShared(unsigned char* base)
      : ChunkForwardShared(Pieces(base)) {}

 private:
  __host__ __device__ explicit ChunkForwardShared(Pieces pieces)
      : Operands(pieces), bytes(pieces.used()) {}
};

// S: the state before the range on entry, after it on return. keep: where states are to be kept,
// the first one that before the range.
template <class Block>
__device__ __forceinline__ void walk_forward(const Block& block, ChunkTile::State& S,
                                             const TokenRange& range,
                                             const StatesAt<float*>& keep) {
  constexpr int kN = ChunkTile::kN, kChunk = ChunkTile::kChunk;
  const auto fetch = [&](int64_t t) {
    block.fetch(t, range.tokens_from<kChunk>(t));
    commit_copies();
  };
  float* kept = keep.base == nullptr ? nullptr : keep.of(block.place, range.begin);
  int64_t next_kept = kept == nullptr ? range.end : range.begin;
  fetch(range.begin);
  for (int64_t t = range.begin; t < range.end; t += kChunk) {
    const int tokens = range.tokens_from<kChunk>(t);
    if (t == next_kept) {
      ChunkTile::store_state(S, kept);
      kept += kN * kN, next_kept += keep.every;
    }
    wait_for_copies();
    __syncthreads();
    block.form_operands(t, tokens);
    __syncthreads();
    if (t + kChunk < range.end) fetch(t + kChunk);
    if constexpr (Block::kWithSquares) {
      block.form_squares();
      __syncthreads();
    }
    block.advance(S);
    if constexpr (Block::kWithOutput) {
      __syncthreads();
      write_rows(block.p.y, block.shared.v, block.place, block.p.dtype, t, tokens);
    }
  }
}

// Per key rowsum(S0 G) over the warp's values, to sums [kWarps][kN]. before: S0
template <class State>
__device__ __forceinline__ void sum_state_products(const ChunkTile::State& G, const State& before,
                                                   float* sums) {
  constexpr int kCount = 2 * ChunkTile::kKeyTiles;
  const int lane = lane_number(), warp = warp_number(), column = lane % 4 * 2;
  float own[kCount];  // over this thread's values, by own key
#pragma unroll
  for (int i = 0; i < ChunkTile::kKeyTiles; ++i) {
    const float* const S = before.at(warp * 16 + lane / 4, i * 8 + column);
    const float2 low = load_two(S), high = load_two(S + 8 * State::stride);
    own[2 * i] = low.x * G[i][0] + high.x * G[i][2];
    own[2 * i + 1] = low.y * G[i][1] + high.y * G[i][3];
  }
  share_sums<kCount, 8, 4>(own, lane);
  const int kept = first_sum_kept<kCount, 8, 4>(lane);
  store_two(sums + warp * ChunkTile::kN + kept / 2 * 8 + column, own[0], own[1]);
}

// G: the gradient of the state after the range on entry, of the one before it on return.
// states: before every chunk.
template <class Block>
__device__ __forceinline__ void walk_back(Block& block, ChunkTile::State& G,
                                          const TokenRange& range,
                                          const StatesAt<const float*>& states) {
  constexpr int kN = ChunkTile::kN, kChunk = ChunkTile::kChunk;
  const auto& p = block.p;
  const auto& place = block.place;
  const auto& shared = block.shared;
  const auto fetch = [&](int64_t t) {
    block.fetch(t, range.tokens_from<kChunk>(t));
    commit_copies();
  };
  const int64_t chunks = ceil_div(range.end - range.begin, kChunk);
  const float* const first_state = states.of(place, range.begin);
  fetch(range.begin + (chunks - 1) * kChunk);
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t t = range.begin + chunk * kChunk;
    const int tokens = range.tokens_from<kChunk>(t);
    wait_for_copies();
    __syncthreads();
    fetch_state(shared.before, first_state + chunk * kN * kN);
    commit_copies();
    block.form_operands(t, tokens);
    widen_values(shared.gy, shared.raw_gy, p.dtype, tokens);
    wait_for_copies();
    __syncthreads();
    if (chunk > 0) fetch(t - kChunk);
    block.go_back(G, t, tokens);
    write_rows(p.gv, shared.gv(), place, p.dtype, t, tokens);
  }
}

// What it computes: y, the final state and, for the backward pass, the state at every keep_every-th
// token. What a thread owns: 32 numbers of one head's state, a warp 16 values and all keys.
// What it gave up: fp32 operands of y (tf32 has 10 bits behind the point), and other head sizes.
template <class Block>
__global__ void __launch_bounds__(ChunkTile::kThreads, 4)
    chunk_forward_kernel(const __grid_constant__ typename Block::Params p) {
  DYNAMIC_SHARED(base);
  const Block block(p, blockIdx.x, base);
  const int64_t at = block.place.state();
  const auto* state = static_cast<const float*>(p.state);
  ChunkTile::State S;
  ChunkTile::load_state(S, state == nullptr ? nullptr : state + at);
  walk_forward(block, S, {0, p.time},
               {static_cast<float*>(p.checkpoints), p.keep_every, p.kept, 0});
  ChunkTile::store_state(S, static_cast<float*>(p.final_state) + at);
}

// What it computes: the states before every chunk of the range, from those that the forward pass
// kept. What a thread owns: as in the forward kernel, for the tokens between two kept states.
// What it gave up: nothing but memory; all kept states of the range are started from at once.
template <class Block>
__global__ void __launch_bounds__(ChunkTile::kThreads, 4)
    chunk_replay_kernel(const __grid_constant__ typename Block::Params p, TokenRange range,
                        StatesAt<const float*> from, StatesAt<float*> to) {
  DYNAMIC_SHARED(base);
  const int64_t segments = ceil_div(range.end - range.begin, from.every);
  const int64_t begin = range.begin + blockIdx.x % segments * from.every;
  const int64_t end = begin + from.every < range.end ? begin + from.every : range.end;
  const Block block(p, blockIdx.x / segments, base);
  ChunkTile::State S;
  ChunkTile::load_state(S, from.of(block.place, begin));
  walk_forward(block, S, {begin, end}, to);
}

// What it computes: for a range of tokens every gradient of chunk_forward_kernel; sums over all
// tokens per batch row. What a thread owns: 32 numbers of the gradient of one head's state, a warp
// 16 values and all keys.
// What it gave up: fp32 operands of what is stored in the inputs' type, and other head sizes.
template <class Block>
__global__ void __launch_bounds__(ChunkTile::kThreads, 2)
    chunk_backward_kernel(const __grid_constant__ typename Block::Params p, TokenRange range,
                          StatesAt<const float*> states) {
  DYNAMIC_SHARED(base);
  Block block(p, blockIdx.x, base);
  // Between ranges gstate carries the gradient on.
  const bool is_first = range.end == p.time;
  const auto* after = static_cast<const float*>(is_first ? p.gfinal_state : p.gstate);
  const int64_t at = block.place.state();
  ChunkTile::State G;
  ChunkTile::load_state(G, after == nullptr ? nullptr : after + at);
  walk_back(block, G, range, states);
  block.write_totals(!is_first);
  ChunkTile::store_state(G, static_cast<float*>(p.gstate) + at);
}

}  // namespace rwkv
