// How the kernels that scan over tokens walk along a range of them forwards: the next chunk is
// fetched while this one is computed. What is done with a chunk is a Block's, a class of the
// operator's derived from ScanForwardBlock:
//
//   fetch(t, tokens)           starts copies of all that the chunk at token t needs
//   widen(t, tokens)           from what was fetched to fp32 in shared memory
//   step(S, n)                 S takes in token n of the chunk
//   kWithOutput, write_outputs(t, tokens)    y of the chunk, which step left in shared memory
#pragma once

#include "head_place.cuh"

namespace rwkv {

// What a thread block has: a slice of a head, and shared memory. SharedType: built from a base
// address and the inputs' type.
template <class ParamsType, class TileType, class SharedType> struct ScanForwardBlock {
  using Params = ParamsType;
  using Tile = TileType;
  using Shared = SharedType;
  static constexpr int kN = Tile::kN, kRows = Tile::kRows, kR = Tile::kR, kC = Tile::kC;
  static constexpr int kThreads = Tile::kThreads, kChunk = Tile::kChunk;
  using State = float[kR][kC];

  const Params& p;
  const HeadPlace<Tile> place;
  const Shared shared;
  const Tile tile;

  __device__ ScanForwardBlock(const Params& p, int64_t block, unsigned char* base)
      : p(p), place(p, block), shared(base, p.dtype) {}
};

// S: the state before the range on entry, after it on return. keep: where states are to be kept.
template <class Block> __device__ __forceinline__ void scan_forward(const Block& block,
                                                                    typename Block::State& S,
                                                                    const TokenRange& range,
                                                                    const StatesAt<float*>& keep) {
  constexpr int kChunk = Block::kChunk;
  block.fetch(range.begin, range.tokens_from<kChunk>(range.begin));
  for (int64_t t = range.begin; t < range.end; t += kChunk) {
    const int tokens = range.tokens_from<kChunk>(t);
    if (keep.has(t)) block.tile.store_state(S, keep.of(block.place, t));
    wait_for_copies();
    __syncthreads();
    block.widen(t, tokens);
    __syncthreads();
    // Only now: the memory that the copies go to has just been read.
    if (t + kChunk < range.end) block.fetch(t + kChunk, range.tokens_from<kChunk>(t + kChunk));
    for (int n = 0; n < tokens; ++n) block.step(S, n);
    if constexpr (Block::kWithOutput) {
      __syncthreads();
      block.write_outputs(t, tokens);
    }
  }
}

// What it computes: y, if it is wanted the final state and, to p.checkpoints, one state per
// checkpoint interval.
// What a thread owns: kR values x kC keys of one head's state, in registers, for all tokens.
// What it gave up: parallelism over time, and tensor cores; few heads leave the card idle.
template <class Block>
__global__ void __launch_bounds__(Block::kThreads, 512 / Block::kThreads)
    scan_forward_kernel(const __grid_constant__ typename Block::Params p) {
  DYNAMIC_SHARED(base);
  const Block block(p, blockIdx.x, base);
  const int64_t at = block.place.state();
  const auto* state = static_cast<const float*>(p.state);
  typename Block::State S;
  block.tile.load_state(S, state == nullptr ? nullptr : state + at);
  scan_forward(block, S, {0, p.time},
               {static_cast<float*>(p.checkpoints), p.checkpoint_interval, p.kept, 0});
  if (p.final_state != nullptr) {
    block.tile.store_state(S, static_cast<float*>(p.final_state) + at);
  }
}

// What it computes: the states before every chunk of the range, from those that forward kept.
// What a thread owns: kR values x kC keys of one head's state, from one kept state to the next.
// What it gave up: memory, to go through all checkpoint intervals of the range at the same time.
template <class Block>
__global__ void __launch_bounds__(Block::kThreads, 512 / Block::kThreads)
    scan_replay_kernel(const __grid_constant__ typename Block::Params p, TokenRange range,
                       StatesAt<const float*> from, StatesAt<float*> to) {
  DYNAMIC_SHARED(base);
  const int64_t segments = ceil_div(range.end - range.begin, from.every);
  const int64_t begin = range.begin + blockIdx.x % segments * from.every;
  const int64_t end = begin + from.every < range.end ? begin + from.every : range.end;
  const Block block(p, blockIdx.x / segments, base);
  typename Block::State S;
  block.tile.load_state(S, from.of(block.place, begin));
  scan_forward(block, S, {begin, end}, to);
}

}  // namespace rwkv
