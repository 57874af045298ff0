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

#include "../common/chunk_fetch.cuh"
#include "wkv7.h"
#include "wkv7_decay.cuh"

namespace rwkv {

// Queries, Keys: ChunkTile::ByRows or ByColumns, by the way in which they are read more often.
template <class Queries, class Keys> struct Wkv7ChunkShared {
  static constexpr int kN = ChunkTile::kN, kChunk = ChunkTile::kChunk;
  static constexpr int kSquare = ChunkTile::kSquare;
  using Values = ChunkTile::ByColumns;
  using Square = ChunkTile::Square;

  Queries a, r;   // A~, R~ [kChunk][kN]
  Keys k, b;      // K-, B- [kChunk][kN]
  Values v;       // [kChunk][kN]
  float* squares;  // A_ab (in full precision), A_ak, A_rb, A_rk, one behind the other
  Square inverse;
  float* growth;  // [kChunk + 1][kN], apart: exp(c_{t-1}), so row 0 is 1 and the last exp(c_16)
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

  // p: Wkv7Forward or Wkv7Backward; the copies are not closed as a group. Without kWithQueries r is
  // left out.
  template <bool kWithQueries, class Params>
  __device__ void fetch(const Params& p, const ChunkFetch& chunk) const {
    if constexpr (kWithQueries) chunk.copy<2, true>(raw_r, p.r);
    chunk.copy<2, true>(raw_k, p.k);
    chunk.copy<2, true>(raw_a, p.a);
    chunk.copy<2, true>(raw_b, p.b);
    chunk.copy<2, false>(raw_v, p.v);
    chunk.copy<4, true>(raw_w, p.w);
  }

  // Forms A~, R~, K-, B-, V and exp(c) from what was fetched, and finds the documents. slope: null,
  // or where to leave the decays' logarithm's derivative by w, [kChunk][kN], apart. Tokens beyond
  // the end become zeros that do not decay.
  template <bool kWithQueries, class Place>
  __device__ __forceinline__ void form_operands(const bool* reset, const Place& place, DType dtype,
                                                int64_t t, int tokens, float* slope) const {
    documents.find(reset, place, t, tokens);
    widen_values(v, raw_v, dtype, tokens);
    const PairOfKeys own;
    // Of the decays, to base 2.
    float2 logs[PairOfKeys::kTokens], sum = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < PairOfKeys::kTokens; ++i) {
      const int at = own.apart(i);
      const float2 w = load_two(reinterpret_cast<const float*>(raw_w) + at);
      const Wkv7TensorDecay x(w.x), y(w.y);
      const bool present = own.first_token + i < tokens;
      logs[i] = present ? make_float2(x.log2, y.log2) : make_float2(0.0f, 0.0f);
      if (slope != nullptr) store_two(slope + at, x.slope, y.slope);
      sum.x += logs[i].x;
      sum.y += logs[i].y;
    }
    float2 c = own.sum_before(sum);
    float2 grown = make_float2(fast_exp2(c.x), fast_exp2(c.y));
#pragma unroll
    for (int i = 0; i < PairOfKeys::kTokens; ++i) {
      c.x += logs[i].x;
      c.y += logs[i].y;
      scale_token<kWithQueries>(own, i, tokens, dtype, c, grown);
    }
  }

  __device__ Square ak() const { return {squares + kSquare}; }
  __device__ Square rb() const { return {squares + 2 * kSquare}; }
  __device__ Square rk() const { return {squares + 3 * kSquare}; }

  // The warps form one of A_ab, A_ak, A_rb, A_rk each, without kWithQueries only the first two, and
  // the first warp the inverse.
  template <bool kWithQueries> __device__ __forceinline__ void form_squares() const {
    const int lane = lane_number(), warp = warp_number();
    if (!kWithQueries && warp >= 2) return;
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
    const int t = lane / 4, last = diagonal ? 0 : 1;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int s = n * 8 + lane % 4 * 2;
      const int of_s[2] = {documents.number[s], documents.number[s + 1]};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = t + i * 8, of_row = documents.number[row];
        float kept[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          // No shortcut: a branch costs more than what it saves.
          const bool keeps = (s + j + last <= row) & (of_s[j] == of_row);
          kept[j] = keeps ? x[n][2 * i + j] : 0.0f;
        }
        store_two(to + row * Square::stride + s, rounds ? round_tf32(kept[0]) : kept[0],
                  rounds ? round_tf32(kept[1]) : kept[1]);
      }
    }
  }

 private:
  // c: with the token, to base 2; grown: exp(c) before the token on entry, with it on return.
  template <bool kWithQueries>
  __device__ __forceinline__ void scale_token(const PairOfKeys& own, int i, int tokens,
                                              DType dtype, const float2& c,
                                              float2& grown) const {
    const int token = own.first_token + i, key = own.key, at = own.apart(i);
    float2 zero = make_float2(0.0f, 0.0f), pair_r = zero, pair_k = zero, pair_a = zero,
           pair_b = zero;
    if (token < tokens) {
      if constexpr (kWithQueries) pair_r = load_pair(raw_r, at, dtype);
      pair_k = load_pair(raw_k, at, dtype);
      pair_a = load_pair(raw_a, at, dtype), pair_b = load_pair(raw_b, at, dtype);
    }
    store_two(growth + at, grown.x, grown.y);
    store_scaled(a.at(token, key), pair_a, grown);
    grown = make_float2(fast_exp2(c.x), fast_exp2(c.y));
    const float2 shrunk = make_float2(fast_inverse(grown.x), fast_inverse(grown.y));
    if constexpr (kWithQueries) store_scaled(r.at(token, key), pair_r, grown);
    store_scaled(k.at(token, key), pair_k, shrunk);
    store_scaled(b.at(token, key), pair_b, shrunk);
    if (token == kChunk - 1) store_two(growth + own.apart_behind(i), grown.x, grown.y);
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
