// Backward pass of RWKV-5 and 6 by chunks of 16 tokens on tensor cores, from the last to the first.
// With the names of outer_chunk.cuh, D the gradient of the state after the chunk, a d before a
// matrix for its gradient, and delta the diagonal of dA:
//
//   dA = dY V^T        dV = A^T dY + K^ D^T        dS0 = D diag(e) + dY^T R~
//   dR~ = dY S0        dK^ = V D        dX = M X, where M is dA + dA^T at the pairs of X's level
//   gr = P dR~ + p dX (tokens of second halves) + delta u k        gu += delta r k
//   gk = Q dK^ + q dX (tokens of first halves) + delta u r
//
// The gradient of the decay's logarithm at token j is a sum of what passes through it, without a
// subtraction:
//
//   e rowsum(S0 D) + sum_{t>j} (R~ dR~)_t + sum_{s<j} (K^ dK^)_s + per level the sum of (X dX)_t
//   over those tokens of j's half that lie behind j in a second half, before j in a first half
#pragma once

#include "outer_chunk_gradients.cuh"
#include "slices.cuh"

namespace rwkv {

template <bool kDecayPerToken> struct OuterChunkBackwardBlock {
  using Tile = ChunkTile;
  using Shared = OuterChunkBackwardShared;
  static constexpr int kN = Tile::kN, kChunk = Tile::kChunk;

  const OuterBackward& p;
  const TokenRange range;
  const StatesAt<const float*> states;  // before every chunk
  const HeadPlace<Tile> place;
  const Shared shared;
  const int lane, warp;

  __device__ OuterChunkBackwardBlock(const OuterBackward& p, const TokenRange& range,
                                     const StatesAt<const float*>& states, int64_t block,
                                     unsigned char* base)
      : p(p), range(range), states(states), place(p, block), shared(base), lane(lane_number()),
        warp(warp_number()) {}

  // G: the gradient of the state after the range on entry, of the one before it on return.
  __device__ __forceinline__ void scan(Tile::State& G) const {
    float2 gu = make_float2(0.0f, 0.0f), gw = gu;  // over the thread's keys and tokens
    const int64_t chunks = ceil_div(range.end - range.begin, kChunk);
    fetch_tokens(range.begin + (chunks - 1) * kChunk);
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t t = range.begin + chunk * kChunk;
      const int tokens = range.tokens_from<kChunk>(t);
      wait_for_copies();
      __syncthreads();
      fetch_state(t);
      shared.template form_operands<kDecayPerToken, true>(p, place, t, tokens, shared.logs);
      widen_values(shared.gy, shared.raw_gy, p.dtype, tokens);
      keep_raw(tokens);
      wait_for_copies();
      __syncthreads();
      if (chunk > 0) fetch_tokens(t - kChunk);
      shared.form_square();
      form_pairs();
      __syncthreads();
      Accumulator gv[2];
      step_back(G, gv);
      __syncthreads();
      place_results(gv);
      __syncthreads();
      OuterChunkGradients<kDecayPerToken>(p, place, shared).write(t, tokens, gu, gw);
      write_rows(p.gv, shared.gv(), place, p.dtype, t, tokens);
    }
    write_total(p.gu, gu);
    if constexpr (!kDecayPerToken) write_total(p.gw, gw);
  }

 private:
  __device__ void fetch_tokens(int64_t t) const {
    const int tokens = range.tokens_from<kChunk>(t);
    shared.template fetch<kDecayPerToken, true>(p, place, t, tokens);
    place.fetch_values(shared.raw_gy, p.gy, p.dtype, t, tokens);
    commit_copies();
  }

  __device__ void fetch_state(int64_t t) const {
    const float* const from = states.of(place, t);
    for (int i = static_cast<int>(threadIdx.x) * 4; i < kN * kN; i += Tile::kThreads * 4) {
      copy_16_async(shared.before.at(i / kN, i % kN), from + i);
    }
    commit_copies();
  }

  // Tokens beyond the end become zeros.
  __device__ void keep_raw(int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < kChunk * kN / kOctet; n += Tile::kThreads) {
      const bool present = OctetOf<kN>(n).token < tokens;
      const uint4 zero = make_uint4(0, 0, 0, 0);
      const auto *r = reinterpret_cast<const uint4*>(shared.raw_r),
                 *k = reinterpret_cast<const uint4*>(shared.raw_k);
      reinterpret_cast<uint4*>(shared.kept_r)[n] = present ? r[n] : zero;
      reinterpret_cast<uint4*>(shared.kept_k)[n] = present ? k[n] : zero;
    }
  }

  // Every warp finds dA and keeps of it the pairs of its level, the first warp delta.
  __device__ __forceinline__ void form_pairs() const {
    Accumulator x[2];
    multiply_rows(x, shared.gy, shared.v, lane);
    const Shared::Pairs to = shared.pair(warp);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = lane / 4 + i / 2 * 8, s = n * 8 + lane % 4 * 2 + i % 2;
        if (t == s || level_of(t, s) != warp) {
          *to.at(t, s) = 0.0f;
          if (t == s && warp == 0) shared.delta[t] = x[n][i];
        } else if (s < t) {
          const float kept = shared.sees(t, s) ? x[n][i] : 0.0f;
          to.set(t, s, kept);
          to.set(s, t, kept);
        }
      }
    }
  }

  // Per warp, for its own values: dV (values in rows) to gv, and G becomes the gradient of the
  // state before the chunk.
  __device__ __forceinline__ void step_back(Tile::State& G, Accumulator (&gv)[2]) const {
    Tile::store_state(G, shared.after);
    sum_state_products(G);
    LeftOperand gy[2];
    load_own_values(gy, shared.gy, lane);
    multiply_state(gv, G, shared.k, shared.documents.last, lane);
    add_upper(gv, gy, shared.square, lane);
    keep_tokens(gy, shared.documents.first, lane);
    const bool cut = shared.documents.cut();
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; ++i) {
      const float2 whole = load_two(shared.whole + i * 8 + lane % 4 * 2);
      if (cut) clear(G[i]);
      else scale_columns(G[i], whole.x, whole.y);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add(G[i], gy[n], shared.r.from(n * 8, i * 8).right(lane));
      }
    }
  }

  __device__ __forceinline__ void sum_state_products(const Tile::State& G) const {
    const int column = lane % 4 * 2;
    float sums[2 * Tile::kKeyTiles];  // over this thread's values, by own key
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; ++i) {
      const float* const S = shared.before.at(warp * 16 + lane / 4, i * 8 + column);
      const float2 low = load_two(S), high = load_two(S + 8 * Shared::State::stride);
      sums[2 * i] = low.x * G[i][0] + high.x * G[i][2];
      sums[2 * i + 1] = low.y * G[i][1] + high.y * G[i][3];
    }
    share_sums<2 * Tile::kKeyTiles, 8, 4>(sums, lane);
    const int kept = first_sum_kept<2 * Tile::kKeyTiles, 8, 4>(lane);
    store_two(shared.state_sums + warp * kN + kept / 2 * 8 + column, sums[0], sums[1]);
  }

  // Every warp finds the dX of its level and half the keys of dR~ or dK^; they are put where S0 and
  // D were, and dV with them.
  __device__ __forceinline__ void place_results(const Accumulator (&gv)[2]) const {
    constexpr int kHalf = Tile::kKeyTiles / 2;
    const int first = warp % 2 * kHalf;
    Accumulator half[kHalf], x[Tile::kKeyTiles];
    if (warp < 2) {
      multiply_rows_by_state(half, shared.gy, shared.before, first, shared.documents.first, lane);
    } else {
      multiply_rows_by_state(half, shared.v, shared.after, first, shared.documents.last, lane);
    }
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; ++i) clear(x[i]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const auto pairs = shared.pair(warp).from(0, n * 8).left(lane);
#pragma unroll
      for (int i = 0; i < Tile::kKeyTiles; ++i) {
        multiply_add(x[i], pairs, shared.level(warp).from(n * 8, i * 8).right(lane));
      }
    }
    __syncthreads();
    Tile::store_rows(x, shared.result(warp));
    const Shared::Rows to = warp < 2 ? shared.gqueries() : shared.gkeys();
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      float* const low = to.at(lane / 4, (first + i) * 8 + lane % 4 * 2);
      store_two(low, half[i][0], half[i][1]);
      store_two(low + 8 * Shared::Rows::stride, half[i][2], half[i][3]);
    }
    place_own_values<false>(gv, shared.gv(), lane);
  }

  // Adds the quarters' sums to the head's row of a total, or sets it in the first range met.
  __device__ void write_total(void* total, const float2& mine) const {
    const PairOfKeys own;
    float2 all[PairOfKeys::kQuarters], sum = make_float2(0.0f, 0.0f);
    PairOfKeys::gather(all, mine);
    for (const float2& part : all) add_to(sum, part);
    if (own.quarter != 0) return;
    float* const to = static_cast<float*>(total) + place.task * kN + own.key;
    if (range.end != p.time) add_to(sum, load_two(to));
    store_two(to, sum.x, sum.y);
  }
};

// What it computes: for a range of tokens every gradient of outer_chunk_forward_kernel, gu (RWKV-5:
// and gw) per batch row.
// What a thread owns: 32 numbers of the gradient of one head's state, a warp 16 values and all
// keys.
// What it gave up: fp32 operands of gv, and head sizes other than 64.
template <bool kDecayPerToken>
__global__ void __launch_bounds__(ChunkTile::kThreads, 2)
    outer_chunk_backward_kernel(const __grid_constant__ OuterBackward p, TokenRange range,
                                StatesAt<const float*> states) {
  DYNAMIC_SHARED(base);
  const OuterChunkBackwardBlock<kDecayPerToken> block(p, range, states, blockIdx.x, base);
  // Between ranges gstate carries the gradient on.
  const auto* after = static_cast<const float*>(range.end == p.time ? p.gfinal_state : p.gstate);
  const int64_t at = block.place.state();
  ChunkTile::State G;
  ChunkTile::load_state(G, after == nullptr ? nullptr : after + at);
  block.scan(G);
  ChunkTile::store_state(G, static_cast<float*>(p.gstate) + at);
}

}  // namespace rwkv
