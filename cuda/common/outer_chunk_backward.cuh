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

#include "chunk_walk.cuh"
#include "outer_chunk_gradients.cuh"

namespace rwkv {

template <bool kDecayPerToken>
struct OuterChunkBackwardBlock : ChunkBlock<OuterBackward, OuterChunkBackwardShared> {
  using ChunkBlock::ChunkBlock;

  __device__ void fetch(int64_t t, int tokens) const {
    shared.template fetch<kDecayPerToken, true>(p, place, t, tokens);
    place.fetch_values(shared.raw_gy, p.gy, p.dtype, t, tokens);
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) const {
    shared.template form_operands<kDecayPerToken, true>(p, place, t, tokens, shared.logs);
    keep_raw(tokens);
  }
  __device__ __forceinline__ void go_back(Tile::State& G, int64_t t, int tokens) {
    shared.form_square();
    form_pairs();
    __syncthreads();
    Accumulator gv[2];
    step_back(G, gv);
    __syncthreads();
    place_results(gv);
    __syncthreads();
    OuterChunkGradients<kDecayPerToken>(p, place, shared).write(t, tokens, gu_, gw_);
  }
  // adds: to what is there.
  __device__ void write_totals(bool adds) const {
    write_total(p.gu, gu_, adds);
    if constexpr (!kDecayPerToken) write_total(p.gw, gw_, adds);
  }

 private:
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
    sum_state_products(G, shared.before, shared.state_sums);
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

  // The quarters' sums, to the head's row of a total.
  __device__ void write_total(void* total, const float2& mine, bool adds) const {
    const PairOfKeys own;
    float2 all[PairOfKeys::kQuarters], sum = make_float2(0.0f, 0.0f);
    PairOfKeys::gather(all, mine);
    for (const float2& part : all) add_to(sum, part);
    if (own.quarter != 0) return;
    float* const to = static_cast<float*>(total) + place.task * kN + own.key;
    if (adds) add_to(sum, load_two(to));
    store_two(to, sum.x, sum.y);
  }

  // Over the thread's keys and tokens.
  float2 gu_ = make_float2(0.0f, 0.0f), gw_ = make_float2(0.0f, 0.0f);
};

}  // namespace rwkv
