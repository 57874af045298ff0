// Backward pass of RWKV-7 by chunks of 16 tokens on tensor cores, from the last to the first. With
// the names of wkv7_chunk.cuh, D the gradient of the state after the chunk times diag(exp(c_16)),
// and a d before a matrix for its gradient:
//
//   dU = A_rb^T dY + B- D^T        dZ = T^T dU        dV = A_rk^T dY + K- D^T + A_ak^T dZ
//   dA_ab = dZ U^T    dA_ak = dZ V^T    dA_rb = dY U^T    dA_rk = dY V^T    (masked like the A)
//   dA~ = dZ S0 + dA_ab B- + dA_ak K-          dR~ = dY S0 + dA_rb B- + dA_rk K-
//   dB- = U D + dA_ab^T A~ + dA_rb^T R~        dK- = V D + dA_ak^T A~ + dA_rk^T R~
//   dS0 = D + dY^T R~ + dZ^T A~
//
// The gradient of the decay's logarithm at token t is, over the tokens of the chunk,
//
//   rowsum(S0 dS0) - sum_{s<t} (R~ dR~ - B- dB- - K- dK-)_s - sum_{s<=t} (A~ dA~)_s
//
// Within 16 tokens these sums do not grow beyond what they are subtracted from.
#pragma once

#include "wkv7_chunk_operands.cuh"

namespace rwkv {

struct Wkv7ChunkBackwardBlock : Wkv7ChunkGradientBlock<Wkv7ChunkBackwardShared> {
  using Wkv7ChunkGradientBlock::Wkv7ChunkGradientBlock;
  // Key tiles of a warp in the products for the gradients of keys.
  static constexpr int kHalf = Tile::kKeyTiles / 2;

  __device__ void fetch(int64_t t, int tokens, int turn) const {
    fetch_rows<true>(t, tokens, turn);
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) {
    shared.form_operands<true, true>(p, place, t, tokens, shared.slope);
    if (p.gs == nullptr) return;
    // Now, as what is read from memory is waited for.
#pragma unroll
    for (int i = 0; i < FourKeys::kTokens; ++i) {
      const int n = FourKeys().first_token + i;
      gs_[i] = n < tokens ? static_cast<const float*>(p.gs)[place.number(t + n)] : 0.0f;
    }
  }
  __device__ __forceinline__ void go_back(Tile::State& G, int64_t t, int tokens, int turn) {
    shared.form_squares<true, true>(t);
    __syncthreads();
    Accumulator gv[2];
    step_back(G, gv, turn);
    __syncthreads();
    form_square_gradients(turn);
    __syncthreads();
    find_results(turn);
    place_own_values(gv, shared.gv(), lane);
    __syncthreads();
    write_gradients(t, tokens);
  }
  // The sum of w's gradient, and gbonus.
  static constexpr int kTotals = 2;
  __host__ __device__ static ChunkTotals<kTotals> totals(const Wkv7Backward& p) {
    return {{static_cast<float*>(p.gbase), static_cast<float*>(p.gbonus)}};
  }
  // adds: to what is there.
  __device__ void write_totals(bool adds) const {
    const ChunkTotals<kTotals> to = totals(p);
    write_total(to.at[0] + place.task * kN, gbase_, adds);
    if (p.gbonus != nullptr) write_total(to.at[1] + place.task * kN, gbonus_, adds);
  }
  // to: [kTotals][kN]
  __device__ void leave_totals(float* to) const {
    write_total(to, gbase_, false);
    write_total(to + kN, gbonus_, false);
  }

 private:
  // Per warp, for its own values: U and dZ to shared memory, dV (values in rows) to gv, and G
  // becomes the gradient of the state before the chunk.
  __device__ __forceinline__ void step_back(Tile::State& G, Accumulator (&gv)[2], int turn) const {
    place_used(turn);
    Accumulator gu[2];
    multiply_after(G, gu, gv);
    const LeftOperand gy = own_gy(turn);
    const Split<LeftOperand> gz = find_gz(gu, gy);
    scale_tokens(gv, shared.documents.last, lane);
    add_upper(gv, gy, shared.rk, lane);
    add_upper(gv, gz, shared.ak, lane);
    shared.gz.store(gz, warp * 16, 0, lane);
    pass_gradient(G, gy, gz);
    sum_state_products(G, shared.before, shared.state_sums);
  }

  // U of this warp's values, as in the forward pass.
  __device__ __forceinline__ void place_used(int turn) const {
    Accumulator z[2], u[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) clear(z[n]), clear(u[n]);
#pragma unroll
    for (int i = 0; i < kN; i += 16) {
      add_keys(z, shared.before.left(warp * 16, i, lane), shared.a, i, lane);
    }
    scale_tokens(z, shared.documents.first, lane);
    add_lower(z, shared.v(turn).left_transposed(0, warp * 16, lane), shared.ak, lane);
    add_lower(u, split_left(z[0], z[1]), shared.inverse, lane);
    shared.u.store(split_left(u[0], u[1]), warp * 16, 0, lane);
  }

  // G becomes D, in shared memory too; gu = B- D^T, gv = K- D^T.
  __device__ __forceinline__ void multiply_after(Tile::State& G, Accumulator (&gu)[2],
                                                 Accumulator (&gv)[2]) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) clear(gu[n]), clear(gv[n]);
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; i += 2) {
      shared.scale_keys(G, i, lane);
      const Split<LeftOperand> after = split_left(G[i], G[i + 1]);
      shared.after.store(after, warp * 16, i * 8, lane);
      add_keys(gu, after, shared.b, i * 8, lane);
      add_keys(gv, after, shared.k, i * 8, lane);
    }
  }

  // The warps form one of dA_ab, dA_ak, dA_rb, dA_rk each.
  __device__ __forceinline__ void form_square_gradients(int turn) const {
    const Shared::ExactRows gy = shared.gy(turn), v = shared.v(turn);
    Accumulator x[2];
    clear(x[0]), clear(x[1]);
#pragma unroll
    for (int i = 0; i < kN; i += 16) {
      Split<RightOperand> used[2];
      RightOperand written[2];
      if (warp % 2 == 0) shared.u.rights(used, i, 0, lane);
      else v.rights_transposed(written, 0, i, lane);
      if (warp < 2) {
        const Split<LeftOperand> left = shared.gz.left_transposed(i, 0, lane);
        if (warp == 0) multiply_add_two(x, left, used);
        else multiply_add_two(x, left, written);
      } else {
        const LeftOperand left = gy.left(0, i, lane);
        if (warp == 2) multiply_add_two(x, left, used);
        else multiply_add_two(x, left, written);
      }
    }
    shared.keep_same_document(x, warp >= 2, lane);
    const Shared::Square to(warp == 0   ? shared.gab().base
                            : warp == 1 ? shared.gak().base
                            : warp == 2 ? shared.grb().base
                                        : shared.grk().base);
    to.store(split_left(x[0], x[1]), 0, 0, lane);
  }

  // Two warps find dA~ and dR~, two dB- and dK-, each for half the keys; they are put where S0
  // was.
  __device__ __forceinline__ void find_results(int turn) const {
    const int key = warp % 2 * kHalf * 8;
    Accumulator x[2][kHalf];
    if (warp < 2) {
      multiply_by_state(x, shared.gz, shared.gy(turn), shared.before, key,
                        shared.documents.first);
      add_pairs(x, shared.b, key, shared.gab().left(0, 0, lane), shared.grb().left(0, 0, lane));
      add_pairs(x, shared.k, key, shared.gak().left(0, 0, lane), shared.grk().left(0, 0, lane));
    } else {
      multiply_by_state(x, shared.u, shared.v(turn), shared.after, key, shared.documents.last);
      add_pairs(x, shared.a, key, shared.gab().left_transposed(0, 0, lane),
                shared.gak().left_transposed(0, 0, lane));
      add_pairs(x, shared.r, key, shared.grb().left_transposed(0, 0, lane),
                shared.grk().left_transposed(0, 0, lane));
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      store_rows(x[m], shared.results(warp / 2 * 2 + m) + key, lane);
    }
  }

  // x[0] = columns^T state, x[1] = rows state, of the keys from `key` on, for the tokens with
  // factor 1, else 0.
  __device__ __forceinline__ void multiply_by_state(Accumulator (&x)[2][kHalf],
                                                    const Shared::Columns& columns,
                                                    const Shared::ExactRows& rows,
                                                    const Shared::State& state, int key,
                                                    const float* factors) const {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) clear(x[0][i]), clear(x[1][i]);
#pragma unroll
    for (int value = 0; value < kN; value += 16) {
      const Split<LeftOperand> split = columns.left_transposed(value, 0, lane);
      const LeftOperand exact = rows.left(0, value, lane);
#pragma unroll
      for (int i = 0; i < kHalf; i += 2) {
        Split<RightOperand> right[2];
        state.rights(right, value, key + i * 8, lane);
        multiply_add_two(&x[0][i], split, right);
        multiply_add_two(&x[1][i], exact, right);
      }
    }
    const float low = factors[lane / 4], high = factors[lane / 4 + 8];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        x[m][i][0] *= low, x[m][i][1] *= low, x[m][i][2] *= high, x[m][i][3] *= high;
      }
    }
  }

  // x[m] += by_m rows, of the keys from `key` on. What a pair of tokens adds here to A~ dA~ or R~
  // dR~ it adds to B- dB- or K- dK- too, and the decay's gradient is the difference.
  __device__ __forceinline__ void add_pairs(Accumulator (&x)[2][kHalf], const Shared::Rows& rows,
                                            int key, const Split<LeftOperand>& by_0,
                                            const Split<LeftOperand>& by_1) const {
#pragma unroll
    for (int i = 0; i < kHalf; i += 2) {
      Split<RightOperand> right[2];
      rows.rights(right, 0, key + i * 8, lane);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add_whole(x[0][i + n], by_0, right[n]);
        multiply_add_whole(x[1][i + n], by_1, right[n]);
      }
    }
  }

  // gr, gk, ga, gb and gw of the thread's four keys and two tokens.
  __device__ __forceinline__ void write_gradients(int64_t t, int tokens) {
    const FourKeys own;
    Token found[FourKeys::kTokens];
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f), gradient = sum;
#pragma unroll
    for (int i = 0; i < FourKeys::kTokens; ++i) {
      found[i] = results_at(own.first_token + i, own.key);
      add_to(sum, found[i].without_a);
      add_to(sum, found[i].of_a);
    }
#pragma unroll
    for (int n = 0; n < Tile::kWarps; ++n) {
      add_to(gradient, load_vec4(shared.state_sums + n * kN + own.key));
    }
    take_from(gradient, own.sum_before(sum));
    const bool cut = shared.documents.cut();
#pragma unroll
    for (int i = 0; i < FourKeys::kTokens; ++i) {
      const int n = own.first_token + i;
      take_from(gradient, found[i].of_a);
      const bool starts = cut && shared.documents.starts_at(n);
      if (p.gs != nullptr) add_bonus(found[i], n, own.key, gs_[i]);
      if (n < tokens) write_token(t, n, own.key, found[i], gradient, starts);
      take_from(gradient, found[i].without_a);
    }
  }

  // Of a token: dA~, dR~, dB-, dK-, and the products A~ dA~ and R~ dR~ - B- dB- - K- dK-.
  struct Token {
    float4 a, r, b, k, of_a, without_a;
  };
  __device__ __forceinline__ Token results_at(int token, int key) const {
    const int at = token * Shared::kFloatStride + key;
    Token found;
    found.a = load_vec4(shared.results(0) + at);
    found.r = load_vec4(shared.results(1) + at);
    found.b = load_vec4(shared.results(2) + at);
    found.k = load_vec4(shared.results(3) + at);
    found.of_a = times(shared.a.vec4(token, key), found.a);
    found.without_a = times(shared.r.vec4(token, key), found.r);
    take_from(found.without_a, times(shared.b.vec4(token, key), found.b));
    take_from(found.without_a, times(shared.k.vec4(token, key), found.k));
    return found;
  }

  // What the bonus adds to dR~ and dK-, and to gbonus, in which their decays cancel: after what the
  // decay's gradient takes from them.
  __device__ __forceinline__ void add_bonus(Token& found, int n, int key, float gs) {
    const float4 bonus = load_vec4(static_cast<const float*>(p.bonus) + place.head * kN + key);
    const float4 r = shared.r.vec4(n, key), k = shared.k.vec4(n, key);
    add_to(found.r, times(gs, times(bonus, k)));
    add_to(found.k, times(gs, times(bonus, r)));
    add_to(gbonus_, times(gs, times(r, k)));
  }

  // n: the token's number in the chunk; log_gradient: of the decay's logarithm
  __device__ __forceinline__ void write_token(int64_t t, int n, int key, const Token& found,
                                              const float4& log_gradient, bool starts) {
    const int64_t to = place.token(t + n) + key;
    const float* const growth = shared.growth + n * Shared::kFloatStride + key;
    const float4 before = load_vec4(growth), grown = load_vec4(growth + Shared::kFloatStride);
    const float4 shrunk = fast_inverse(grown);
    const float4 slope = load_vec4(shared.slope + n * Shared::kFloatStride + key);
    narrow_vec4(static_cast<uint16_t*>(p.ga) + to, times(found.a, before));
    narrow_vec4(static_cast<uint16_t*>(p.gr) + to, times(found.r, grown));
    narrow_vec4(static_cast<uint16_t*>(p.gb) + to, times(found.b, shrunk));
    narrow_vec4(static_cast<uint16_t*>(p.gk) + to, times(found.k, shrunk));
    const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const float4 gw = starts ? zero : times(slope, log_gradient);
    write_gw(p, to, gw);
    add_to(gbase_, gw);
  }

  float gs_[FourKeys::kTokens] = {};
  // Over the thread's keys and tokens.
  float4 gbase_ = make_float4(0.0f, 0.0f, 0.0f, 0.0f), gbonus_ = gbase_;
};

}  // namespace rwkv
