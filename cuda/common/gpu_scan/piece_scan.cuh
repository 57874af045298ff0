// What the kernels share that scan over a piece of a sequence for what it does to the state,
// without outputs: forwards the contribution and, if there is one, the transition as a matrix,
// backwards the gradient of the initial state. A Block is as forward_scan.cuh wants it, without
// outputs; where it says token t it means the t-th one of the walk.
#pragma once

#include "forward_scan.cuh"

namespace rwkv {

// A slice of a head whose tokens are walked in either direction.
template <class TileType> struct PiecePlace : HeadPlace<TileType> {
  using Base = HeadPlace<TileType>;
  using Base::kN, Base::kRows, Base::slice, Base::time;

  bool backwards;

  __device__ PiecePlace(const HeadSizes& p, bool backwards, int64_t block)
      : Base(p, block), backwards(backwards) {}

  __device__ bool starts(const bool* reset, int64_t t) const {
    return Base::starts(reset, token_of(t));
  }
  // Whole rows of `tokens` tokens from the t-th on, N elements each.
  __device__ void fetch_keys(unsigned char* to, const void* from, DType dtype, int64_t t,
                             int tokens) const {
    fetch<kN>(to, from, dtype, Base::token(token_of(t)), tokens);
  }
  // The slice's part of the rows, kRows elements each.
  __device__ void fetch_values(unsigned char* to, const void* from, DType dtype, int64_t t,
                               int tokens) const {
    fetch<kRows>(to, from, dtype, Base::token(token_of(t)) + slice * kRows, tokens);
  }

 private:
  __device__ int64_t token_of(int64_t t) const { return backwards ? time - 1 - t : t; }

  template <int kElements>
  __device__ void fetch(unsigned char* to, const void* from, DType dtype, int64_t first,
                        int tokens) const {
    const int bytes = element_bytes(dtype);
    copy_rows_async<kElements, TileType::kThreads>(
        to, static_cast<const unsigned char*>(from) + first * bytes, tokens,
        backwards ? -Base::stride() : Base::stride(), bytes);
  }
};

// What a thread block has; blocks from batch * heads * slices on form the transition, which is what
// the tokens make of the identity while they write nothing.
template <class ParamsType, class TileType, class SharedType> struct PieceScanBlock {
  using Params = ParamsType;
  using Tile = TileType;
  using Shared = SharedType;
  static constexpr int kN = Tile::kN, kRows = Tile::kRows, kR = Tile::kR, kC = Tile::kC;
  static constexpr int kThreads = Tile::kThreads, kChunk = Tile::kChunk;
  static constexpr bool kWithOutput = false;
  using State = float[kR][kC];

  const Params& p;
  const bool is_transition;
  const PiecePlace<Tile> place;
  const Shared shared;
  const Tile tile;

  __device__ PieceScanBlock(const Params& p, int64_t block, unsigned char* base)
      : p(p), is_transition(block >= p.batch * p.heads * Tile::kSlices),
        place(p, p.backwards, block % (p.batch * p.heads * Tile::kSlices)), shared(base, p.dtype) {}

  __device__ void start(State& S) const {
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        const int key = tile.first_key(c / 4) + c % 4;
        const bool is_diagonal = key == place.slice * kRows + tile.first_row() + i;
        S[i][c] = is_transition && is_diagonal ? 1.0f : 0.0f;
      }
    }
  }

  __device__ void fetch_values(int64_t t, int tokens) const {
    if (!is_transition) place.fetch_values(shared.raw_v, p.values, p.dtype, t, tokens);
  }
  __device__ void widen_values(int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kRows / kVec8; n += kThreads) {
      const Vec8 v = is_transition ? Vec8::of(0.0f) : load_vec8(shared.raw_v, n * kVec8, p.dtype);
      store_floats(shared.v + n * kVec8, v);
    }
  }
};

// What it computes: p.matrix and, by the blocks behind those, p.transition.
// What a thread owns: kR values x kC keys of one head's matrix, in registers, for all tokens.
// What it gave up: parallelism over time, and tensor cores; few heads leave the card idle.
template <class Block>
__global__ void __launch_bounds__(Block::kThreads, 512 / Block::kThreads)
    piece_scan_kernel(const __grid_constant__ typename Block::Params p) {
  DYNAMIC_SHARED(base);
  const Block block(p, blockIdx.x, base);
  typename Block::State S;
  block.start(S);
  scan_forward(block, S, {0, p.time}, {nullptr, 1, 0, 0});
  float* to = static_cast<float*>(p.matrix);
  if constexpr (Block::kHasTransition) {
    if (block.is_transition) to = static_cast<float*>(p.transition);
  }
  block.tile.store_state(S, to + block.place.state());
}

}  // namespace rwkv
