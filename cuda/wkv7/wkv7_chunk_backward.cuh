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

#include "../common/chunk_walk.cuh"
#include "wkv7_chunk.cuh"

namespace rwkv {

struct Wkv7ChunkBackwardShared : Wkv7ChunkShared<ChunkTile::ByColumns, ChunkTile::ByRows> {
  using State = ChunkTile::ByRows::With<Held::kFp32>;
  using Gradient = ChunkTile::ByRows;
  using Rows = ChunkTile::ByColumns::With<Held::kFp32>;

  Values gy, u, gz;   // [kChunk][kN]: dY, U, dZ
  float* gsquares;    // dA_ab, dA_ak, dA_rb, dA_rk, as squares
  State before;       // S0 [kN values][kN keys]
  Gradient after;     // D, likewise
  float* slope;       // [kChunk][kN], apart: the derivative of the decay's logarithm by w
  float* state_sums;  // [kWarps][kN]: rowsum(S0 dS0) over the values of a warp
  unsigned char* raw_gy;
  int bytes;

  __host__ __device__ explicit Wkv7ChunkBackwardShared(unsigned char* base)
      : Wkv7ChunkBackwardShared(Pieces(base)) {}

  __device__ Square gsquare(int number) const { return {gsquares + number * kSquare}; }
  // What was before and after the chunk gives its place to the results: dA~, dR~, dB-, dK-, and dV.
  __device__ Rows result(int number) const {
    return {before.base + number * kChunk * Rows::stride};
  }
  __device__ Rows gv() const { return {after.base}; }

 private:
  __host__ __device__ explicit Wkv7ChunkBackwardShared(Pieces pieces)
      : Wkv7ChunkShared(pieces), gy{pieces.floats(kChunk * Values::stride)},
        u{pieces.floats(kChunk * Values::stride)}, gz{pieces.floats(kChunk * Values::stride)},
        gsquares(pieces.floats(4 * kSquare)), before{pieces.floats(kN * State::stride)},
        after{pieces.floats(kN * Gradient::stride)}, slope(pieces.floats(kChunk * kN)),
        state_sums(pieces.floats(ChunkTile::kWarps * kN)),
        raw_gy(pieces.bytes(kChunk * kN * 2)), bytes(pieces.used()) {}
};

struct Wkv7ChunkBackwardBlock : ChunkBlock<Wkv7Backward, Wkv7ChunkBackwardShared> {
  using ChunkBlock::ChunkBlock;
  static constexpr int kHalf = Tile::kKeyTiles / 2;

  __device__ void fetch(int64_t t, int tokens) const {
    const ChunkFetch chunk(place, t, tokens);
    shared.fetch<true>(p, chunk);
    chunk.copy<2, false>(shared.raw_gy, p.gy);
  }
  __device__ __forceinline__ void form_operands(int64_t t, int tokens) const {
    shared.form_operands<true>(p.reset, place, p.dtype, t, tokens, shared.slope);
  }
  __device__ __forceinline__ void go_back(Tile::State& G, int64_t t, int tokens) const {
    shared.form_squares<true>();
    __syncthreads();
    Accumulator gv[2];
    step_back(G, gv);
    __syncthreads();
    form_square_gradients();
    __syncthreads();
    write_results(gv);
    __syncthreads();
    write_pairs(t, tokens);
  }
  __device__ void write_totals(bool) const {}

 private:
  // Per warp, for its own values: U and dZ to shared memory, dV (values in rows) to gv, and G
  // becomes the gradient of the state before the chunk.
  __device__ __forceinline__ void step_back(Tile::State& G, Accumulator (&gv)[2]) const {
    scale_keys(G);
    Tile::store_state(G, shared.after);
    place_used();
    LeftOperand gy[2], gz[2];
    find_gradients(G, gv, gy, gz);
    keep_tokens(gy, shared.documents.first, lane);
    keep_tokens(gz, shared.documents.first, lane);
    const bool cut = shared.documents.cut();
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; ++i) {
      if (cut) clear(G[i]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        multiply_add(G[i], gy[n], shared.r.from(n * 8, i * 8).right(lane));
        multiply_add(G[i], gz[n], shared.a.from(n * 8, i * 8).right(lane));
      }
    }
    sum_state_products(G, shared.before, shared.state_sums);
  }

  __device__ __forceinline__ void scale_keys(Tile::State& G) const {
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; ++i) {
      const float2 grown = load_two(shared.growth + kChunk * kN + i * 8 + lane % 4 * 2);
      scale_columns(G[i], grown.x, grown.y);
    }
  }

  // U of this warp's values, as in the forward pass.
  __device__ __forceinline__ void place_used() const {
    Accumulator z[2], u[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) clear(z[n]), clear(u[n]);
#pragma unroll
    for (int i = 0; i < Tile::kKeyTiles; ++i) {
      const LeftOperand state = shared.before.from(warp * 16, i * 8).straight_left(lane);
      RightOperand queries[2];
      shared.a.from(0, i * 8).straight_rights_transposed(queries, lane);
      multiply_add(z[0], state, queries[0]);
      multiply_add(z[1], state, queries[1]);
    }
    scale_tokens(z, shared.documents.first);
    LeftOperand left[2];
    load_own_values(left, shared.v, lane);
    add_lower(z, left, shared.ak(), lane);
    left[0] = as_left(z[0]), left[1] = as_left(z[1]);
    add_lower(u, left, shared.inverse, lane);
    place_own_values<true>(u, shared.u, lane);
  }

  // dV to gv; dY and dZ as operands, dZ to shared memory too.
  __device__ __forceinline__ void find_gradients(const Tile::State& G, Accumulator (&gv)[2],
                                                 LeftOperand (&gy)[2],
                                                 LeftOperand (&gz)[2]) const {
    Accumulator gu[2], z[2];
    multiply_state(gu, G, shared.b, shared.documents.last, lane);
    multiply_state(gv, G, shared.k, shared.documents.last, lane);
    load_own_values(gy, shared.gy, lane);
    add_upper(gu, gy, shared.rb(), lane);
    add_upper(gv, gy, shared.rk(), lane);
    LeftOperand left[2];
    left[0] = as_left(gu[0]), left[1] = as_left(gu[1]);
    clear(z[0]), clear(z[1]);
    add_upper(z, left, shared.inverse, lane);
    gz[0] = as_left(z[0]), gz[1] = as_left(z[1]);
    add_upper(gv, gz, shared.ak(), lane);
    place_own_values<true>(z, shared.gz, lane);
  }

  // Columns of x are tokens.
  __device__ __forceinline__ void scale_tokens(Accumulator (&x)[2], const float* factors) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 factor = load_two(factors + n * 8 + lane % 4 * 2);
      scale_columns(x[n], factor.x, factor.y);
    }
  }

  // The warps form one of dA_ab, dA_ak, dA_rb, dA_rk each.
  __device__ __forceinline__ void form_square_gradients() const {
    Accumulator x[2];
    multiply_rows(x, Shared::Values{(warp & 2) != 0 ? shared.gy.base : shared.gz.base},
                  Shared::Values{(warp & 1) != 0 ? shared.v.base : shared.u.base}, lane);
    shared.store_square(x, shared.gsquares + warp * Shared::kSquare, (warp & 2) != 0, true, lane);
  }

  // Two warps find dA~ and dR~, two dB- and dK-, each for half the keys; they are put where S0 was,
  // and dV where D was.
  __device__ __forceinline__ void write_results(const Accumulator (&gv)[2]) const {
    const int first = warp % 2 * kHalf;
    Accumulator x[2][kHalf];
    if (warp < 2) find_query_gradients(x, first);
    else find_key_gradients(x, first);
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      Tile::store_rows(x[m], shared.result(warp / 2 * 2 + m).from(0, first * 8));
    }
    place_own_values<false>(gv, shared.gv(), lane);
  }

  // dA~ and dR~ of the key tiles from `first` on.
  __device__ __forceinline__ void find_query_gradients(Accumulator (&x)[2][kHalf],
                                                       int first) const {
    multiply_both_by_state(x, shared.gz, shared.gy, shared.before, first, shared.documents.first,
                           lane);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      LeftOperand by[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) by[m] = shared.gsquare(m).from(0, n * 8).straight_left(lane);
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const RightOperand b = shared.b.from(n * 8, (first + i) * 8).straight_right(lane);
        const RightOperand k = shared.k.from(n * 8, (first + i) * 8).straight_right(lane);
        multiply_add(x[0][i], by[0], b);
        multiply_add(x[1][i], by[2], b);
        multiply_add(x[0][i], by[1], k);
        multiply_add(x[1][i], by[3], k);
      }
    }
  }

  // dB- and dK- of the key tiles from `first` on.
  __device__ __forceinline__ void find_key_gradients(Accumulator (&x)[2][kHalf], int first) const {
    multiply_both_by_state(x, shared.u, shared.v, shared.after, first, shared.documents.last, lane);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      LeftOperand by[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) by[m] = shared.gsquare(m).from(n * 8, 0).left_transposed(lane);
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        const RightOperand a = shared.a.from(n * 8, (first + i) * 8).right(lane);
        const RightOperand r = shared.r.from(n * 8, (first + i) * 8).right(lane);
        multiply_add(x[0][i], by[0], a);
        multiply_add(x[1][i], by[1], a);
        multiply_add(x[0][i], by[2], r);
        multiply_add(x[1][i], by[3], r);
      }
    }
  }

  // gr, gk, ga, gb and gw of the thread's two keys and four tokens.
  __device__ __forceinline__ void write_pairs(int64_t t, int tokens) const {
    const PairOfKeys own;
    Token found[PairOfKeys::kTokens];
    float2 sum = make_float2(0.0f, 0.0f), gradient = sum;
#pragma unroll
    for (int i = 0; i < PairOfKeys::kTokens; ++i) {
      found[i] = results_at(own.first_token + i, own.key);
      sum.x += found[i].without_a.x + found[i].of_a.x;
      sum.y += found[i].without_a.y + found[i].of_a.y;
    }
#pragma unroll
    for (int n = 0; n < Tile::kWarps; ++n) {
      const float2 part = load_two(shared.state_sums + n * kN + own.key);
      gradient.x += part.x;
      gradient.y += part.y;
    }
    const float2 before = own.sum_before(sum);
    gradient.x -= before.x;
    gradient.y -= before.y;
    const bool cut = shared.documents.cut();
#pragma unroll
    for (int i = 0; i < PairOfKeys::kTokens; ++i) {
      const int n = own.first_token + i;
      gradient.x -= found[i].of_a.x;
      gradient.y -= found[i].of_a.y;
      const bool starts = cut && shared.documents.starts_at(n);
      if (n < tokens) write_token(t, own, i, found[i], gradient, starts);
      gradient.x -= found[i].without_a.x;
      gradient.y -= found[i].without_a.y;
    }
  }

  // Of a token: dA~, dR~, dB-, dK-, and the products A~ dA~ and R~ dR~ - B- dB- - K- dK-.
  struct Token {
    float2 a, r, b, k, of_a, without_a;
  };
  __device__ __forceinline__ Token results_at(int token, int key) const {
    const float2 a = load_two(shared.a.at(token, key)), r = load_two(shared.r.at(token, key));
    const float2 b = load_two(shared.b.at(token, key)), k = load_two(shared.k.at(token, key));
    Token found;
    found.a = load_two(shared.result(0).at(token, key));
    found.r = load_two(shared.result(1).at(token, key));
    found.b = load_two(shared.result(2).at(token, key));
    found.k = load_two(shared.result(3).at(token, key));
    found.of_a = make_float2(a.x * found.a.x, a.y * found.a.y);
    found.without_a = make_float2(r.x * found.r.x - b.x * found.b.x - k.x * found.k.x,
                                  r.y * found.r.y - b.y * found.b.y - k.y * found.k.y);
    return found;
  }

  // log_gradient: of the decay's logarithm
  __device__ __forceinline__ void write_token(int64_t t, const PairOfKeys& own, int i,
                                              const Token& found, const float2& log_gradient,
                                              bool starts) const {
    const int64_t to = place.token(t + own.first_token + i) + own.key;
    const float2 before = load_two(shared.growth + own.apart(i));
    const float2 grown = load_two(shared.growth + own.apart_behind(i));
    const float2 shrunk = make_float2(fast_inverse(grown.x), fast_inverse(grown.y));
    const float2 slope = load_two(shared.slope + own.apart(i));
    store_pair(p.ga, to, p.dtype, found.a.x * before.x, found.a.y * before.y);
    store_pair(p.gr, to, p.dtype, found.r.x * grown.x, found.r.y * grown.y);
    store_pair(p.gb, to, p.dtype, found.b.x * shrunk.x, found.b.y * shrunk.y);
    store_pair(p.gk, to, p.dtype, found.k.x * shrunk.x, found.k.y * shrunk.y);
    store_two(static_cast<float*>(p.gw) + to, starts ? 0.0f : slope.x * log_gradient.x,
              starts ? 0.0f : slope.y * log_gradient.y);
  }
};

}  // namespace rwkv
