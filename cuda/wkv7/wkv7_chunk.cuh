// What the chunked kernels of RWKV-7 share: a chunk of 16 tokens as matrices.
//
// With c_t the sum of the decays' logarithms up to token t of the chunk, rows being tokens:
//
//   A~ = a exp(c_{t-1})    R~ = r exp(c_t)    K- = k exp(-c_t)    B- = b exp(-c_t)
//   A_ab = A~ B-^T, A_ak = A~ K-^T below the diagonal; A_rb = R~ B-^T, A_rk = R~ K-^T up to it
//   T = (I - A_ab)^-1      U = T (A~ S0^T + A_ak V)
//   Y = R~ S0^T + A_rk V + A_rb U      S = (S0 + V^T K- + U^T B-) diag(exp(c_16))
//
// Decays of RWKV-7 stay above 0.545, so exp(-c) below 1.7e4. The inverse is found by substitution:
// powers of A_ab grow like binomials where keys are alike. Source: RWKV-7 paper, and the WY form of
// products of Householder-like matrices.
#pragma once

#include "../common/chunk_tile.cuh"
#include "wkv7.h"
#include "wkv7_decay.cuh"

namespace rwkv {

// Queries, Keys: ChunkTile::ByRows or ByColumns, by the way in which they are read more often.
template <class Queries, class Keys> struct Wkv7ChunkShared {
  static constexpr int kN = ChunkTile::kN, kChunk = ChunkTile::kChunk;
  static constexpr int kSquare = ChunkTile::kSquare;
  using Values = ChunkTile::ByRows;
  using Square = ChunkTile::Square;

  Queries a, r;   // A~, R~ [kChunk][kN]
  Keys k, b;      // K-, B- [kChunk][kN]
  Values v;       // [kChunk][kN]
  float* squares;  // A_ab (in full precision), A_ak, A_rb, A_rk, one behind the other
  Square inverse;
  float* growth;  // [kChunk + 1][kN]: exp(c_{t-1}), so row 0 is 1 and the last exp(c_16)
  ChunkDocuments documents;
  unsigned char *raw_r, *raw_k, *raw_a, *raw_b, *raw_v, *raw_w;

  __host__ __device__ explicit Wkv7ChunkShared(Pieces& pieces)
      : a{pieces.floats(kChunk * Queries::stride)}, r{pieces.floats(kChunk * Queries::stride)},
        k{pieces.floats(kChunk * Keys::stride)}, b{pieces.floats(kChunk * Keys::stride)},
        v{pieces.floats(kChunk * Values::stride)}, squares(pieces.floats(4 * kSquare)),
        inverse{pieces.floats(kSquare)}, growth(pieces.floats((kChunk + 1) * kN)),
        documents(pieces) {
    for (unsigned char** raw : {&raw_r, &raw_k, &raw_a, &raw_b, &raw_v}) {
      *raw = pieces.bytes(kChunk * kN * 2);
    }
    raw_w = pieces.bytes(kChunk * kN * 4);
  }

  // p: Wkv7Forward or Wkv7Backward; the copies are not closed as a group.
  template <class Params, class Place>
  __device__ void fetch(const Params& p, const Place& place, int64_t t, int tokens) const {
    place.fetch_keys(raw_r, p.r, p.dtype, t, tokens);
    place.fetch_keys(raw_k, p.k, p.dtype, t, tokens);
    place.fetch_keys(raw_a, p.a, p.dtype, t, tokens);
    place.fetch_keys(raw_b, p.b, p.dtype, t, tokens);
    place.fetch_values(raw_v, p.v, p.dtype, t, tokens);
    place.fetch_keys(raw_w, p.w, DType::kFloat, t, tokens);
  }

  // Forms A~, R~, K-, B-, V and exp(c) from what was fetched, and finds the documents. slope: null,
  // or where to leave the decays' logarithm's derivative by w, [kChunk][kN]. Tokens beyond the end
  // become zeros that do not decay.
  template <class Place>
  __device__ __forceinline__ void form_operands(const bool* reset, const Place& place, DType dtype,
                                                int64_t t, int tokens, float* slope) const {
    documents.find(reset, place, t, tokens);
    widen_values(v, raw_v, dtype, tokens);
    const PairOfKeys own;
    float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int token = own.first_token; token < own.first_token + PairOfKeys::kTokens; ++token) {
      const int at = token * kN + own.key;
      float2 log = make_float2(0.0f, 0.0f), derivative = log;
      if (token < tokens) {
        const float2 w = load_two(reinterpret_cast<const float*>(raw_w) + at);
        log = make_float2(wkv7_log_decay(w.x), wkv7_log_decay(w.y));
        derivative = make_float2(log.x * wkv7_rest(w.x), log.y * wkv7_rest(w.y));
      }
      if (slope != nullptr) store_two(slope + at, derivative.x, derivative.y);
      // Kept there until scale_token, in this thread, puts the growth in its place.
      store_two(growth + at, log.x, log.y);
      sum.x += log.x;
      sum.y += log.y;
    }
    float2 c = own.sum_before(sum);
    float2 grown = make_float2(expf(c.x), expf(c.y));
#pragma unroll
    for (int token = own.first_token; token < own.first_token + PairOfKeys::kTokens; ++token) {
      scale_token(token, own.key, tokens, dtype, c, grown);
    }
  }

  __device__ Square ak() const { return {squares + kSquare}; }
  __device__ Square rb() const { return {squares + 2 * kSquare}; }
  __device__ Square rk() const { return {squares + 3 * kSquare}; }

  // The warps form one of A_ab, A_ak, A_rb, A_rk each, and the first one the inverse.
  __device__ __forceinline__ void form_squares() const {
    const int lane = lane_number(), warp = warp_number();
    Accumulator x[2];
    multiply_rows(x, Queries{(warp & 2) != 0 ? r.base : a.base},
                  Keys{(warp & 1) != 0 ? k.base : b.base}, lane);
    store_square(x, squares + warp * kSquare, (warp & 2) != 0, warp != 0, lane);
    if (warp == 0) {
      __syncwarp();
      invert(lane);
    }
  }

  // Keeps elements below the diagonal (and on it) whose tokens are in the same document.
  __device__ __forceinline__ void store_square(const Accumulator (&x)[2], float* to, bool diagonal,
                                               bool rounds, int lane) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
        const bool keeps = (column < row || (diagonal && column == row)) &&
                           documents.number[column] == documents.number[row];
        const float kept = keeps ? x[n][i] : 0.0f;
        to[row * Square::stride + column] = rounds ? round_tf32(kept) : kept;
      }
    }
  }

 private:
  // c: before the token on entry, with it on return; grown: exp(c).
  __device__ __forceinline__ void scale_token(int token, int key, int tokens, DType dtype,
                                              float2& c, float2& grown) const {
    const int at = token * kN + key;
    const float2 log = load_two(growth + at);
    c.x += log.x;
    c.y += log.y;
    float2 zero = make_float2(0.0f, 0.0f), pair_r = zero, pair_k = zero, pair_a = zero,
           pair_b = zero;
    if (token < tokens) {
      pair_r = load_pair(raw_r, at, dtype), pair_k = load_pair(raw_k, at, dtype);
      pair_a = load_pair(raw_a, at, dtype), pair_b = load_pair(raw_b, at, dtype);
    }
    store_two(growth + at, grown.x, grown.y);
    store_scaled(a.at(token, key), pair_a, grown);
    grown = make_float2(expf(c.x), expf(c.y));
    const float2 shrunk = make_float2(expf(-c.x), expf(-c.y));
    store_scaled(r.at(token, key), pair_r, grown);
    store_scaled(k.at(token, key), pair_k, shrunk);
    store_scaled(b.at(token, key), pair_b, shrunk);
    if (token == kChunk - 1) store_two(growth + at + kN, grown.x, grown.y);
  }

  __device__ static void store_scaled(float* to, const float2& x, const float2& factor) {
    store_two(to, round_tf32(x.x * factor.x), round_tf32(x.y * factor.y));
  }

  // (I - A_ab)^-1 by forward substitution; a lane finds a column.
  __device__ __forceinline__ void invert(int lane) const {
    if (lane >= kChunk) return;
    float column[kChunk];
#pragma unroll
    for (int row = 0; row < kChunk; ++row) {
      float sum = row == lane ? 1.0f : 0.0f;
#pragma unroll
      for (int i = 0; i < row; ++i) sum += squares[row * Square::stride + i] * column[i];
      column[row] = sum;
      *inverse.at(row, lane) = round_tf32(sum);
    }
  }
};

}  // namespace rwkv
