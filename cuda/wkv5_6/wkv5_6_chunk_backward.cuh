// Backward pass of RWKV-5 and 6 by chunks of 16 tokens on tensor cores, from the last to the first.
// With the names of wkv5_6_chunk.cuh, D the gradient of the state after the chunk, a d before a
// matrix for its gradient, and delta the diagonal of dA:
//
//   dA = dY V^T        dV = A^T dY + K^ D^T        dS0 = D diag(e) + dY^T R~
//   dR~ = dY S0        dK^ = V D        dX = M X, where M is dA + dA^T at the pairs of X's level
//   gr = P dR~ + p dX (tokens of second halves) + delta u k        gu += delta r k
//   gk = Q dK^ + q dX (tokens of first halves) + delta u r
//
// The gradients of the decays: wkv5_6_chunk_gradients.cuh. What belongs to values is a warp's, as
// forwards; of keys every warp finds sixteen, the same that its threads have in the elementwise
// work, so that results pass on without a barrier.
#pragma once

#include "../common/gpu_chunks/chunk_walk.cuh"
#include "wkv5_6_chunk_gradients.cuh"

namespace rwkv {

// G, so far D, becomes dS0. gy: of the warp's values
template <class Shared>
__device__ __forceinline__ void pass_gradient(ChunkTile::State& G, LeftOperand gy,
                                              const Shared& shared, int lane) {
  cut_documents(G, shared.documents, shared.documents.first, lane, gy);
#pragma unroll
  for (int i = 0; i < ChunkTile::kKeyTiles; i += 2) {
    shared.scale_keys(G, i, lane);
    add_tokens(G, i, gy, shared.r, lane);
  }
}

struct Wkv5_6ChunkChainShared : Wkv5_6ChunkShared<Wkv5_6Parts::kGradients> {
  InTurn<ExactRows> gys;  // dY
  int bytes;

  __host__ __device__ explicit Wkv5_6ChunkChainShared(unsigned char* base)
      : Wkv5_6ChunkChainShared(Pieces(base)) {}

 private:
  __host__ __device__ explicit Wkv5_6ChunkChainShared(Pieces pieces)
      : Wkv5_6ChunkShared(pieces), gys(pieces), bytes(pieces.used()) {}
};

// Of the chain kernel: the state's gradient alone.
template <bool kDecayPerToken> struct Wkv5_6ChunkChainBlock
    : ChunkBlock<Wkv5_6Backward, Wkv5_6ChunkChainShared> {
  using ChunkBlock::ChunkBlock;

  __device__ void fetch(int64_t t, int tokens, int turn) const {
    const ChunkFetch chunk(place, t, tokens);
    shared.template fetch<kDecayPerToken>(p, chunk, turn);
    chunk.copy(shared.gys.of(turn), p.gy);
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) const {
    shared.template form_operands<kDecayPerToken>(p, place, t, tokens);
  }
  __device__ void form_squares(int64_t) const {}
  __device__ __forceinline__ void advance(Tile::State& G, int turn) const {
    pass_gradient(G, shared.gys.of(turn).left_transposed(0, warp * 16, lane), shared, lane);
  }
};

template <bool kDecayPerToken> struct Wkv5_6ChunkBackwardBlock
    : ChunkBlock<Wkv5_6Backward, Wkv5_6ChunkBackwardShared> {
  using ChunkBlock::ChunkBlock;
  // gu, and the sum of w's gradient: that of base, or RWKV-5's own.
  static constexpr int kTotals = 2;
  __host__ __device__ static ChunkTotals<kTotals> totals(const Wkv5_6Backward& p) {
    return {{static_cast<float*>(p.gu), static_cast<float*>(kDecayPerToken ? p.gbase : p.gw)}};
  }

  __device__ void fetch(int64_t t, int tokens, int turn) const {
    const ChunkFetch chunk(place, t, tokens);
    shared.template fetch<kDecayPerToken>(p, chunk, turn);
    chunk.copy(shared.gy(turn), p.gy);
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) {
    mine_ = shared.template form_operands<kDecayPerToken>(p, place, t, tokens);
  }
  __device__ __forceinline__ void go_back(Tile::State& G, int64_t t, int tokens, int turn) {
    const LeftOperand gy = shared.gy(turn).left_transposed(0, warp * 16, lane);
    Accumulator gv[2];
    shared.form_square();
    step_back(G, gv, gy);
    __syncthreads();
    add_upper(gv, gy, shared.square, lane);
    place_own_values(gv, shared.gv(), lane);
    const PairOfGradients pair = find_results(turn);
    __syncwarp();
    write_gradients(t, tokens, pair);
  }
  // adds: to what is there.
  __device__ void write_totals(bool adds) const {
    const ChunkTotals<kTotals> to = totals(p);
    write_total(to.at[0] + place.task * kN, gu_, adds);
    write_total(to.at[1] + place.task * kN, gw_, adds);
  }
  // to: [kTotals][kN]
  __device__ void leave_totals(float* to) const {
    write_total(to, gu_, false);
    write_total(to + kN, gw_, false);
  }

 private:
  // Per warp, for its own values: K^ D^T to gv (values in rows), D to shared memory, and G becomes
  // the gradient of the state before the chunk.
  __device__ __forceinline__ void step_back(Tile::State& G, Accumulator (&gv)[2],
                                            const LeftOperand& gy) const {
    sum_state_products(G, shared.before, shared.state_sums);
    clear(gv[0]), clear(gv[1]);
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; i += 2) {
      const Split<LeftOperand> after = split_left(G[i], G[i + 1]);
      shared.after.store(after, warp * 16, i * 8, lane);
      add_keys(gv, after, shared.k, i * 8, lane);
    }
    scale_tokens(gv, shared.documents.last, lane);
    pass_gradient(G, gy, shared, lane);
  }

  // Every warp, for sixteen keys: dR~, dK^ and dX.
  __device__ __forceinline__ PairOfGradients find_results(int turn) const {
    const Shared::ExactRows gy = shared.gy(turn), v = shared.v(turn);
    Accumulator queries[2], keys[2], pairs[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) clear(queries[n]), clear(keys[n]), clear(pairs[n]);
    // No further: the operands under way would not fit into the registers.
#pragma unroll 2
    for (int value = 0; value < kN; value += 16) {
      const LeftOperand read = gy.left(0, value, lane), written = v.left(0, value, lane);
      const RightOperand tokens[2] = {Shared::columns_of(written, false),
                                      Shared::columns_of(written, true)};
      multiply_add_two(pairs, read, tokens);
      Split<RightOperand> state[2];
      shared.before.rights(state, value, warp * 16, lane);
      multiply_add_two(queries, read, state);
      shared.after.rights(state, value, warp * 16, lane);
      multiply_add_two(keys, written, state);
    }
    const float *const first = shared.documents.first, *const last = shared.documents.last;
    place_result(queries, shared.gqueries(), first[lane / 4], first[lane / 4 + 8]);
    place_result(keys, shared.gkeys(), last[lane / 4], last[lane / 4 + 8]);
    find_level_results(pairs);
    return PairOfGradients(pairs, lane);
  }

  // pairs: dA. In words as in form_square; the squares of 8 x 8 tokens at the diagonal have levels
  // 1 and 2, the others level 0.
  __device__ __forceinline__ void find_level_results(const Accumulator (&pairs)[2]) const {
    const int g = lane / 4, s = lane % 4 * 2;
    const SplitPair below =
        Shared::kept(SplitPair::of(pairs[0][2], pairs[0][3]), shared.seen(g + 8, s));
    const SplitPair above = Shared::transposed(below);
    find_level_result(0, {{{0, below.head, above.head, 0}}, {{0, below.tail, above.tail, 0}}});
    const bool inside = s + 1 < g;
    const SplitPair low = symmetric(pairs[0][0], pairs[0][1], inside ? shared.seen(g, s) : 0);
    const SplitPair high =
        symmetric(pairs[1][2], pairs[1][3], inside ? shared.seen(g + 8, s + 8) : 0);
#pragma unroll
    for (int n = 1; n < kLevels; ++n) {
      const unsigned mask = (level_of(g, s) == 1) == (n == 1) ? ~0u : 0u;
      find_level_result(n, {{{low.head & mask, 0, 0, high.head & mask}},
                            {{low.tail & mask, 0, 0, high.tail & mask}}});
    }
  }
  __device__ __forceinline__ static SplitPair symmetric(float x, float y, unsigned mask) {
    const SplitPair below = Shared::kept(SplitPair::of(x, y), mask);
    const SplitPair above = Shared::transposed(below);
    return {below.head | above.head, below.tail | above.tail};
  }
  __device__ __forceinline__ void find_level_result(int level, const Split<LeftOperand>& M) const {
    Split<RightOperand> right[2];
    shared.level(level).rights(right, 0, warp * 16, lane);
    Accumulator x[2];
    clear(x[0]), clear(x[1]);
    multiply_add_two(x, M, right);
    place_result(x, shared.glevel(level), 1.0f, 1.0f);
  }

  // low, high: factors of the thread's two rows
  __device__ __forceinline__ void place_result(const Accumulator (&x)[2], const Shared::Rows& to,
                                               float low, float high) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int key = warp * 16 + n * 8 + lane % 4 * 2;
      to.set_two_floats(lane / 4, key, low * x[n][0], low * x[n][1]);
      to.set_two_floats(lane / 4 + 8, key, high * x[n][2], high * x[n][3]);
    }
  }

  // gr, gk and (for RWKV-6) gw of the thread's pair of tokens; adds to the sums.
  __device__ __forceinline__ void write_gradients(int64_t t, int tokens,
                                                  const PairOfGradients& pair) {
    Wkv5_6ChunkGradients found(mine_);
    const FourKeys& own = found.own;
    found.find(shared);
    found.add_pair(pair, load_vec4(static_cast<const float*>(p.u) + place.head * kN + own.key),
                   shared.sees(own.first_token + 1, own.first_token), gu_);
#pragma unroll
    for (int i = 0; i < FourKeys::kTokens; ++i) {
      const int n = own.first_token + i;
      if (n >= tokens) continue;
      const int64_t to = place.token(t + n) + own.key;
      narrow_vec4(static_cast<uint16_t*>(p.gr) + to, found.gr[i]);
      narrow_vec4(static_cast<uint16_t*>(p.gk) + to, found.gk[i]);
      const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      const float4 gw = shared.documents.starts_at(n) ? zero : found.of_decay(i);
      if constexpr (kDecayPerToken) write_gw(p, to, gw);
      add_to(gw_, gw);
    }
  }

  Wkv5_6Pair mine_;
  // Over the thread's keys and tokens.
  float4 gu_ = make_float4(0.0f, 0.0f, 0.0f, 0.0f), gw_ = gu_;
};

}  // namespace rwkv
