// How the kernels that go by chunks of 16 tokens on tensor cores walk along a range of tokens: the
// next chunk is fetched while this one is computed. Rows of values are used as they are fetched, so
// there are two of them in turn. What is done with a chunk is a Block's, a class of the operator's
// derived from ChunkBlock:
//
//   fetch(t, tokens, turn)     starts copies of all that the chunk at token t needs
//   form_operands(t, tokens)   from what was fetched
// and forwards
//   kWithSquares, form_squares(t)
//   kWithOutput, advance(S, turn)    S passes the chunk; y takes the place of v
// or, with before (the state before the chunk) and gv() in shared memory, backwards
//   go_back(G, t, tokens, turn)      G becomes the gradient of the state before the chunk; writes
//                                    the other gradients, gv to shared memory
//   write_totals(adds)               at the end, gradients that are sums over the range, kTotals
//                                    rows of a head: to where they are wanted
//   leave_totals(to)                 to working memory
#pragma once

#include "../gpu/warp_reduce.cuh"
#include "chunk_fetch.cuh"

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

  // head: batch row * H + head
  __device__ ChunkBlock(const Params& p, int64_t head, unsigned char* base)
      : p(p), place(p, head), shared(base), lane(lane_number()), warp(ChunkTile::warp()) {}
  // The same head's, in other shared memory.
  __device__ ChunkBlock(const ChunkBlock& other, unsigned char* base)
      : p(other.p), place(other.place), shared(base), lane(other.lane), warp(other.warp) {}
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

// The states that a walk leaves in memory: none, some as they are, or split for fetch_split_state.
enum class Keeps { kNothing, kStates, kSplitStates };

// S: the state before the range on entry, after it on return. keep: where states are to be kept,
// the first one that before the range.
template <Keeps kKeeps, class Block>
__device__ __forceinline__ void walk_chunks_forward(const Block& block, ChunkTile::State& S,
                                                    const TokenRange& range,
                                                    const StatesAt<float*>& keep) {
  constexpr int kN = ChunkTile::kN, kChunk = ChunkTile::kChunk;
  const auto fetch = [&](int64_t t, int turn) {
    block.fetch(t, range.tokens_from<kChunk>(t), turn);
    commit_copies();
  };
  const bool keeps = kKeeps != Keeps::kNothing && keep.base != nullptr;
  float* kept = keeps ? keep.of(block.place, range.begin) : nullptr;
  int64_t next_kept = keeps ? range.begin : range.end;
  int turn = 0;
  fetch(range.begin, turn);
  for (int64_t t = range.begin; t < range.end; t += kChunk, turn ^= 1) {
    const int tokens = range.tokens_from<kChunk>(t);
    if (kKeeps != Keeps::kNothing && t == next_kept) {
      if constexpr (kKeeps == Keeps::kSplitStates) ChunkTile::store_split_state(S, kept);
      else ChunkTile::store_state(S, kept);
      kept += kN * kN, next_kept += keep.every;
    }
    wait_for_copies();
    __syncthreads();
    block.form_operands(t, tokens);
    __syncthreads();
    if (t + kChunk < range.end) fetch(t + kChunk, turn ^ 1);
    if constexpr (Block::kWithSquares) {
      block.form_squares(t);
      __syncthreads();
    }
    block.advance(S, turn);
    if constexpr (Block::kWithOutput) {
      __syncwarp();
      write_own_values(block.p.y, block.shared.v(turn), block.place, t, tokens);
    }
  }
}

// Per key rowsum(S0 G) over the warp's values, to sums [kWarps][kN]. before: S0
__device__ __forceinline__ void sum_state_products(const ChunkTile::State& G,
                                                   const ChunkTile::HeadState& before,
                                                   float* sums) {
  constexpr int kCount = 2 * ChunkTile::kKeyTiles;
  const int lane = lane_number(), warp = ChunkTile::warp();
  float own[kCount];  // over this thread's values, by own key
#pragma unroll
  for (int i = 0; i < ChunkTile::kKeyTiles; i += 2) {
    Accumulator S[2];
    join_left(S[0], S[1], before.left(warp * 16, i * 8, lane));
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      own[2 * (i + n)] = S[n][0] * G[i + n][0] + S[n][2] * G[i + n][2];
      own[2 * (i + n) + 1] = S[n][1] * G[i + n][1] + S[n][3] * G[i + n][3];
    }
  }
  reduce_scatter<kCount, 8, 4>(own, lane);
  const int kept = first_sum_kept<kCount, 8, 4>(lane);
  float* const to = sums + warp * ChunkTile::kN + kept / 2 * 8 + lane % 4 * 2;
  *reinterpret_cast<float2*>(to) = make_float2(own[0], own[1]);
}

// Four elements of w's gradient, in its type; at: of the first.
template <class Params>
__device__ __forceinline__ void write_gw(const Params& p, int64_t at, const float4& gw) {
  if (p.gw_dtype == DType::kFloat) store_vec4(static_cast<float*>(p.gw) + at, gw);
  else narrow_vec4(static_cast<uint16_t*>(p.gw) + at, gw);
}

// Joins what the threads found for their keys and tokens to sums over all tokens, in a row of kN.
// adds: to what is there.
__device__ __forceinline__ void write_total(float* row, float4 sum, bool adds) {
  const FourKeys own;
#pragma unroll
  for (int bit = 1; bit < FourKeys::kPairs; bit *= 2) add_to(sum, FourKeys::of_pair(sum, bit));
  if (own.pair != 0) return;
  if (adds) add_to(sum, load_vec4(row + own.key));
  store_vec4(row + own.key, sum);
}

// G: the gradient of the state after the range on entry, of the one before it on return.
// states: before every chunk, as the replay kernel leaves them.
template <class Block>
__device__ __forceinline__ void walk_chunks_backward(Block& block, ChunkTile::State& G,
                                                     const TokenRange& range,
                                                     const StatesAt<const float*>& states) {
  constexpr int kN = ChunkTile::kN, kChunk = ChunkTile::kChunk;
  const auto fetch = [&](int64_t t, int turn) {
    block.fetch(t, range.tokens_from<kChunk>(t), turn);
    commit_copies();
  };
  const int64_t chunks = ceil_div(range.end - range.begin, kChunk);
  const float* const first_state = states.of(block.place, range.begin);
  int turn = 0;
  fetch(range.begin + (chunks - 1) * kChunk, turn);
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk, turn ^= 1) {
    const int64_t t = range.begin + chunk * kChunk;
    const int tokens = range.tokens_from<kChunk>(t);
    wait_for_copies();
    __syncthreads();
    fetch_split_state(block.shared.before, first_state + chunk * kN * kN);
    commit_copies();
    block.form_operands(t, tokens);
    wait_for_copies();
    __syncthreads();
    if (chunk > 0) fetch(t - kChunk, turn ^ 1);
    block.go_back(G, t, tokens, turn);
    write_own_values(block.p.gv, block.shared.gv(), block.place, t, tokens);
  }
}

// What a thread block works on where the segments of a range, each `every` tokens long, go side by
// side.
struct SegmentOfBlock {
  int64_t head;  // batch row * H + head
  TokenRange range;

  __device__ SegmentOfBlock(const TokenRange& whole, int64_t every) {
    const int64_t segments = ceil_div(whole.end - whole.begin, every);
    head = blockIdx.x / segments;
    range.begin = whole.begin + blockIdx.x % segments * every;
    range.end = range.begin + every < whole.end ? range.begin + every : whole.end;
  }
};

// What it computes: y, if it is wanted the final state and, to p.checkpoints, one state per
// checkpoint interval.
// What a thread owns: 32 numbers of one head's state; a warp owns 16 values and all keys.
// What it gave up: inputs other than bf16, and other head sizes.
template <class Block>
__global__ void __launch_bounds__(ChunkTile::kThreads, 4)
    chunk_forward_kernel(const __grid_constant__ typename Block::Params p) {
  DYNAMIC_SHARED(base);
  const Block block(p, static_cast<int64_t>(blockIdx.x), base);
  const int64_t at = block.place.state();
  const auto* state = static_cast<const float*>(p.state);
  ChunkTile::State S;
  ChunkTile::load_state(S, state == nullptr ? nullptr : state + at);
  walk_chunks_forward<Keeps::kStates>(
      block, S, {0, p.time},
      {static_cast<float*>(p.checkpoints), p.checkpoint_interval, p.kept, 0});
  if (p.final_state != nullptr) {
    ChunkTile::store_state(S, static_cast<float*>(p.final_state) + at);
  }
}

// What it computes: from the kept states `from`, y of the chunks up to the next kept state; without
// output, the states before every chunk instead, split, to `to`.
// What a thread owns: 32 numbers of one head's state, between two kept states.
// What it gave up: memory, to go through all checkpoint intervals of the range at the same time.
template <class Block>
__global__ void __launch_bounds__(ChunkTile::kThreads, 4)
    chunk_replay_kernel(const __grid_constant__ typename Block::Params p, TokenRange range,
                        StatesAt<const float*> from, StatesAt<float*> to) {
  DYNAMIC_SHARED(base);
  const SegmentOfBlock segment(range, from.every);
  const Block block(p, segment.head, base);
  ChunkTile::State S;
  ChunkTile::load_state(S, from.of(block.place, segment.range.begin));
  constexpr Keeps kKeeps = Block::kWithOutput ? Keeps::kNothing : Keeps::kSplitStates;
  walk_chunks_forward<kKeeps>(block, S, segment.range, to);
}

// What it computes: for a range of tokens every gradient of chunk_forward_kernel; those summed over
// tokens per batch row.
// What a thread owns: 32 numbers of the gradient of one head's state; a warp owns 16 values.
// What it gave up: inputs other than bf16, and other head sizes.
template <class Block>
__global__ void __launch_bounds__(ChunkTile::kThreads, 2)
    chunk_backward_kernel(const __grid_constant__ typename Block::Params p, TokenRange range,
                          StatesAt<const float*> states) {
  DYNAMIC_SHARED(base);
  Block block(p, static_cast<int64_t>(blockIdx.x), base);
  // Between two ranges gstate holds the gradient: the later range left it there.
  const bool is_first = range.end == p.time;
  const auto* after = static_cast<const float*>(is_first ? p.gfinal_state : p.gstate);
  const int64_t at = block.place.state();
  ChunkTile::State G;
  ChunkTile::load_state(G, after == nullptr ? nullptr : after + at);
  walk_chunks_backward(block, G, range, states);
  block.write_totals(!is_first);
  if (range.begin > 0 || p.with_gstate) {
    ChunkTile::store_state(G, static_cast<float*>(p.gstate) + at);
  }
}

// What it computes: as chunk_backward_kernel, without gstate. `after` holds the gradients of the
// states after each segment of the range, and receives the sums over the segment's tokens.
// What a thread owns: 32 numbers of the gradient of one head's state, for one segment.
// What it gave up: inputs other than bf16, other head sizes, and the chain's pass over the tokens.
template <class Block>
__global__ void __launch_bounds__(ChunkTile::kThreads, 2)
    chunk_segment_backward_kernel(const __grid_constant__ typename Block::Params p,
                                  TokenRange range, StatesAt<const float*> states,
                                  StatesAt<float*> after) {
  DYNAMIC_SHARED(base);
  const SegmentOfBlock segment(range, after.every);
  Block block(p, segment.head, base);
  ChunkTile::State G;
  float* const own = after.of(block.place, segment.range.begin);
  ChunkTile::load_state(G, own);
  walk_chunks_backward(block, G, segment.range, states);
  block.leave_totals(own);
}

// [kTotals] of [B, H, N], or null.
template <int kTotals> struct ChunkTotals {
  float* at[kTotals];
};

// What it computes: the sums over a range's segments of what chunk_segment_backward_kernel left of
// each; adds: to what is there.
// What a thread owns: one element of a head.
// What it gave up: parallelism over segments; they are few, and their order is fixed.
template <int kTotals>
__global__ void __launch_bounds__(ChunkTile::kN)
    chunk_add_totals_kernel(StatesAt<const float*> parts, ChunkTotals<kTotals> totals, bool adds) {
  constexpr int64_t kN = ChunkTile::kN;
  const int64_t head = blockIdx.x, own = threadIdx.x;
#pragma unroll
  for (int i = 0; i < kTotals; ++i) {
    float sum = 0.0f;
    for (int64_t n = parts.count - 1; n >= 0; --n) {
      sum += parts.base[(head * parts.count + n) * kN * kN + i * kN + own];
    }
    if (totals.at[i] == nullptr) continue;
    float* const to = totals.at[i] + head * kN + own;
    *to = adds ? *to + sum : sum;
  }
}

}  // namespace rwkv
