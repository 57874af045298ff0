// Where there are few heads, most of a card would wait for the chunks of each, one after another.
// Then a chain of chunks computes the states alone and keeps those at which segments of the time
// axis begin; all else is computed from these, all segments at the same time. Backwards likewise,
// with the states' gradients.
//
// A block of the chain is a pipeline of three stages, each with the threads of an ordinary block:
// while the last stage takes the state through a chunk, the second forms the squares of the next
// chunk and the first the operands of the one after that. Each stage has a chunk's memory to
// itself, in turn.
#pragma once

#include "chunk_walk.cuh"

namespace rwkv {

constexpr int kChainStages = 3, kChainThreads = kChainStages * ChunkTile::kThreads;

// Which of a block's sets of shared memory a chunk has, and which of the two buffers in it for rows
// of values: those are read two steps after they have come, when the next ones are under way.
struct ChainPlace {
  int set = 0, turn = 0;

  __device__ ChainPlace next() const {
    return set + 1 < kChainStages ? ChainPlace{set + 1, turn} : ChainPlace{0, turn ^ 1};
  }
};

// S: the state before the range, or kBackwards the gradient of the one after it, on entry; in the
// last stage the one at the other end on return. keep: where to leave the states at
// which the walk enters segments, keep.every tokens each.
// Block: as walk_chunks_forward asks for, without y.
template <bool kBackwards, class Block>
__device__ __forceinline__ void walk_chain(const Block& block, unsigned char* base,
                                           ChunkTile::State& S, const TokenRange& range,
                                           const StatesAt<float*>& keep) {
  constexpr int kChunk = ChunkTile::kChunk;
  const int64_t chunks = ceil_div(range.end - range.begin, kChunk);
  const int64_t per_segment = keep.every / kChunk;
  const int stage = warp_number() / ChunkTile::kWarps;
  const auto token = [&](int64_t n) {
    return range.begin + (kBackwards ? chunks - 1 - n : n) * kChunk;
  };
  const auto memory = [&](const ChainPlace& at) {
    return Block(block, base + at.set * block.shared.bytes);
  };
  const auto fetch = [&](int64_t n, const ChainPlace& at) {
    memory(at).fetch(token(n), range.tokens_from<kChunk>(token(n)), at.turn);
    commit_copies();
  };

  ChainPlace at;
  int64_t until_kept = 0;
  if (stage == 0) {
    fetch(0, at);
    wait_for_copies();
  }
  __syncthreads();
  // The stages' chunks: each begins later than the one before it.
  for (int64_t n = -stage; n < chunks + kChainStages - 1 - stage; ++n) {
    if (n >= 0 && n < chunks) {
      if (stage == 0) {
        if (n + 1 < chunks) fetch(n + 1, at.next());
        memory(at).form_operands(token(n), range.tokens_from<kChunk>(token(n)));
        wait_for_copies();
      } else if (stage == 1) {
        memory(at).form_squares(token(n));
      } else {
        if (until_kept == 0) {
          ChunkTile::store_state(S, keep.of(block.place, token(n)));
          until_kept = kBackwards && n == 0 ? (chunks - 1) % per_segment + 1 : per_segment;
        }
        --until_kept;
        memory(at).advance(S, at.turn);
      }
      at = at.next();
    }
    __syncthreads();
  }
}

// What it computes: the final state and, to `keep`, the states at the starts of segments.
// What a thread owns: in the last stage, 32 numbers of one head's state; a warp owns 16 values.
// What it gave up: two thirds of the threads hold no state.
template <class Block>
__global__ void __launch_bounds__(kChainThreads, 1)
    chunk_state_chain_kernel(const __grid_constant__ typename Block::Params p,
                             StatesAt<float*> keep) {
  DYNAMIC_SHARED(base);
  const Block block(p, static_cast<int64_t>(blockIdx.x), base);
  const int64_t at = block.place.state();
  const auto* state = static_cast<const float*>(p.state);
  ChunkTile::State S;
  ChunkTile::load_state(S, state == nullptr ? nullptr : state + at);
  walk_chain<false>(block, base, S, {0, p.time}, keep);
  if (warp_number() / ChunkTile::kWarps != kChainStages - 1) return;
  if (p.final_state == nullptr) return;
  ChunkTile::store_state(S, static_cast<float*>(p.final_state) + at);
}

// What it computes: for a range of tokens the gradient of the state before it and, to `keep`, those
// of the states after segments.
// What a thread owns: in the last stage, 32 numbers of the gradient of one head's state.
// What it gave up: two thirds of the threads hold no gradient.
template <class Block>
__global__ void __launch_bounds__(kChainThreads, 1)
    chunk_gradient_chain_kernel(const __grid_constant__ typename Block::Params p, TokenRange range,
                                StatesAt<float*> keep) {
  DYNAMIC_SHARED(base);
  const Block block(p, static_cast<int64_t>(blockIdx.x), base);
  const void* const after = range.end == p.time ? p.gfinal_state : p.gstate;
  const int64_t at = block.place.state();
  ChunkTile::State G;
  ChunkTile::load_state(G, after == nullptr ? nullptr : static_cast<const float*>(after) + at);
  walk_chain<true>(block, base, G, range, keep);
  if (warp_number() / ChunkTile::kWarps != kChainStages - 1) return;
  if (range.begin == 0 && !p.with_gstate) return;
  ChunkTile::store_state(G, static_cast<float*>(p.gstate) + at);
}

}  // namespace rwkv
