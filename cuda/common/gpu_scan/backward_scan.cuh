// How the kernels that scan over tokens walk along a range of them backwards. The gradients need a
// token's state S and the gradient G of the state after it, though S is known forwards and G
// backwards. So S is computed again from the state before every chunk, twice: once through the
// chunk, which parks the state before every burst of kBurst tokens in shared memory, and once per
// burst, whose states are held in registers while G passes it. Nothing is subtracted or inverted.
//
// What is done with a chunk is a Block's, a class of the operator's derived from ScanBackwardBlock:
//
//   fetch(t)                  starts copies of all that the chunk at token t needs
//   widen(t, tokens)          from what was fetched to fp32 in shared memory
//   park_states(S, last)      from S[kStartsIn], the state before the chunk: parks the states
//                             before bursts 1 .. last - 1 and leaves that before burst `last` in
//                             S[0]
//   run_burst(S, G, first)    S[0]: the state before token `first`; G passes the burst; leaves its
//                             sums over values in shared memory
//   write_sum(t, first, vec, which), write_gv(t, first, vec)    these to the gradients
//   clear_totals(), write_totals()    before and after the range, gradients summed over its tokens
#pragma once

#include "slices.cuh"

namespace rwkv {

// What a burst leaves in shared memory; an operator's class derives from it and places the pieces.
template <class TileType, int kSums> struct BurstShared {
  // Of a chunk's bursts the first one's state is in memory and the last one's is not read again.
  static constexpr int kParked = TileType::kChunk / kBurst - 2;

  float* sums;    // [kBurst][kWarps][kSums][kN]: over the values of a warp
  float* gv;      // [kBurst][kRows]
  float* parked;  // [kParked][kThreads][kR][kC]

  __device__ float* sums_of(int token, int warp, int which) const {
    return sums + ((token * TileType::kWarps + warp) * kSums + which) * TileType::kN;
  }
};

// What a thread block has: a slice of a head, and shared memory. kSums: over values per token, of
// which kResultsPerToken are results per token; kTotals: gradients summed over tokens.
template <class ParamsType, class TileType, class SharedType, int kSumsPerToken,
          int kResultsPerToken, int kTotalsPerHead>
struct ScanBackwardBlock {
  using Params = ParamsType;
  using Tile = TileType;
  using Shared = SharedType;
  static constexpr int kN = Tile::kN, kRows = Tile::kRows, kR = Tile::kR, kC = Tile::kC;
  static constexpr int kThreads = Tile::kThreads, kChunk = Tile::kChunk, kSums = kSumsPerToken;
  static constexpr int kResults = kResultsPerToken, kTotals = kTotalsPerHead;
  using State = float[kR][kC];
  using Keys = float[kC];
  using Values = float[kR];

  const Params& p;
  const TokenRange range;
  const StatesAt<const float*> states;  // before every chunk
  const HeadPlace<Tile> place;
  const SliceSums<Tile, kResults, kTotals> results;
  const Shared shared;
  const Tile tile;

  __device__ ScanBackwardBlock(const Params& p, const TokenRange& range,
                               const StatesAt<const float*>& states, float* slices, int64_t block,
                               unsigned char* base)
      : p(p), range(range), states(states), place(p, block), results(p, range, slices),
        shared(base, p.dtype) {}

  // Where the state before burst number 1 .. kParked lies.
  __device__ float* parked(int burst) const { return shared.parked + (burst - 1) * kRows * kN; }

  // Sum number `which` of the burst's token vec.token over all warps' values, in their order.
  __device__ __forceinline__ Vec8 sum_over_warps(const Vec8Place<kN>& vec, int which) const {
    Vec8 sum = load_floats(shared.sums_of(vec.token, 0, which) + vec.at);
    for (int warp = 1; warp < Tile::kWarps; ++warp) {
      add_vec8(sum, load_floats(shared.sums_of(vec.token, warp, which) + vec.at));
    }
    return sum;
  }

  // Without gradients that are summed over tokens.
  __device__ void clear_totals() const {}
  __device__ void write_totals() const {}
};

// Writes what a burst left in shared memory: eight elements of a sum, or of gv, per thread and
// turn.
template <class Block>
__device__ __forceinline__ void write_burst(const Block& block, int64_t t, int first, int tokens) {
  constexpr int kPerSum = kBurst * Block::kN / kVec8;
  constexpr int kTasks = Block::kSums * kPerSum + kBurst * Block::kRows / kVec8;
  for (int task = static_cast<int>(threadIdx.x); task < kTasks; task += Block::kThreads) {
    const int which = task / kPerSum, rest = task - which * kPerSum;
    if (which == Block::kSums) {
      const Vec8Place<Block::kRows> vec(rest);
      if (first + vec.token < tokens) block.write_gv(t, first, vec);
    } else {
      const Vec8Place<Block::kN> vec(rest);
      if (first + vec.token < tokens) block.write_sum(t, first, vec, which);
    }
  }
}

// G: the gradient of the state after the range on entry, of the one before it on return.
template <class Block>
__device__ __forceinline__ void scan_backward(const Block& block, typename Block::State& G) {
  constexpr int kChunk = Block::kChunk;
  const TokenRange& range = block.range;
  block.clear_totals();
  const int64_t chunks = ceil_div(range.end - range.begin, kChunk);
  block.fetch(range.begin + (chunks - 1) * kChunk);
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t t = range.begin + chunk * kChunk;
    const int tokens = range.tokens_from<kChunk>(t), last = (tokens - 1) / kBurst;
    typename Block::State S[kBurst];
    block.tile.load_state(S[Block::kStartsIn], block.states.of(block.place, t));
    wait_for_copies();
    __syncthreads();
    block.widen(t, tokens);
    __syncthreads();
    if (chunk > 0) block.fetch(t - kChunk);
    block.park_states(S, last);
    for (int burst = last; burst >= 0; --burst) {
      if (burst < last) {
        if (burst == 0) block.tile.load_state(S[0], block.states.of(block.place, t));
        else block.tile.unpark_state(S[0], block.parked(burst));
      }
      block.run_burst(S, G, burst * kBurst);
      // Sums of every warp are read; and all have been read before the next burst overwrites them.
      __syncthreads();
      write_burst(block, t, burst * kBurst, tokens);
      __syncthreads();
    }
  }
  block.write_totals();
}

// What it computes: for a range of tokens every gradient of scan_forward_kernel; those summed over
// tokens per batch row; where a head has several slices, sums over values are left per slice.
// What a thread owns: kR values x kC keys of S for kBurst tokens, and of G.
// What it gave up: work, for the states are computed twice again, and parallelism over time.
template <class Block>
__global__ void __launch_bounds__(Block::kThreads, 256 / Block::kThreads)
    scan_backward_kernel(const __grid_constant__ typename Block::Params p, TokenRange range,
                         StatesAt<const float*> states, float* slices) {
  DYNAMIC_SHARED(base);
  const Block block(p, range, states, slices, blockIdx.x, base);
  // Between two ranges gstate holds the gradient: the later range left it there.
  const auto* after = static_cast<const float*>(range.end == p.time ? p.gfinal_state : p.gstate);
  const int64_t at = block.place.state();
  typename Block::State G;
  block.tile.load_state(G, after == nullptr ? nullptr : after + at);
  scan_backward(block, G);
  if (range.begin > 0 || p.with_gstate) {
    block.tile.store_state(G, static_cast<float*>(p.gstate) + at);
  }
}

}  // namespace rwkv
