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

#include "../common/gpu_chunks/chunk_fetch.cuh"
#include "wkv7.h"
#include "wkv7_decay.cuh"

namespace rwkv {

struct Wkv7ChunkShared {
  static constexpr int kN = ChunkTile::kN, kChunk = ChunkTile::kChunk;
  static constexpr int kFloatStride = ChunkTile::kFloatStride;
  using Rows = ChunkTile::Rows;
  using ExactRows = ChunkTile::ExactRows;
  using Square = ChunkTile::Square;
  // Of A_ab in fp32.
  static constexpr int kMixStride = kChunk + 4, kMixFloats = kChunk * kMixStride;

  Rows a, r, k, b;   // A~, R~, K-, B-
  Square ak, rb, rk;  // A_ak, A_rb, A_rk
  Square inverse;    // T
  float* mix;        // A_ab
  float* growth;     // [kChunk + 1][kFloatStride]: exp(c_{t-1}); row 0 is 1, the last exp(c_16)
  ChunkDocuments documents;
  ExactRows raw_r, raw_k, raw_a, raw_b;  // as fetched
  float* raw_w;                          // [kChunk][kFloatStride]
  InTurn<ExactRows> values;

  // mix_floats: room at `mix`, for who puts something else there once T is found.
  __host__ __device__ explicit Wkv7ChunkShared(Pieces& pieces, int mix_floats = kMixFloats)
      : a(pieces), r(pieces), k(pieces), b(pieces), ak(pieces), rb(pieces), rk(pieces),
        inverse(pieces), mix(pieces.floats(mix_floats)),
        growth(pieces.floats((kChunk + 1) * kFloatStride)), documents(pieces), raw_r(pieces),
        raw_k(pieces), raw_a(pieces), raw_b(pieces),
        raw_w(pieces.floats(kChunk * kFloatStride)), values(pieces) {}

  __device__ ExactRows v(int turn) const { return values.of(turn); }

  // p: Wkv7Forward or Wkv7Backward; the copies are not closed as a group. Without kWithR or kWithK
  // what needs r or k is skipped, here and below.
  template <bool kWithR, bool kWithK, class Params>
  __device__ void fetch(const Params& p, const ChunkFetch& chunk, int turn) const {
    if constexpr (kWithR) chunk.copy(raw_r, p.r);
    if constexpr (kWithK) chunk.copy(raw_k, p.k);
    chunk.copy(raw_a, p.a);
    chunk.copy(raw_b, p.b);
    if constexpr (kWithK) chunk.copy(v(turn), p.v);
    chunk.copy(raw_w, p.w);
  }

  // Forms A~, R~, K-, B- and exp(c) from what was fetched, and finds the documents. slope: null, or
  // where to leave the decays' logarithm's derivative by w, [kChunk][kFloatStride]. Tokens beyond
  // the end are zeros that do not decay.
  template <bool kWithR, bool kWithK, class Params, class Place>
  __device__ __forceinline__ void form_operands(const Params& p, const Place& place, int64_t t,
                                                int tokens, float* slope) const {
    documents.find(p.reset, place, t, tokens);
    const FourKeys own;
    float4 base = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (p.base != nullptr) {
      base = load_vec4(static_cast<const float*>(p.base) + place.head * kN + own.key);
    }
    // Of the decays, to base 2.
    float4 logs[FourKeys::kTokens], sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < FourKeys::kTokens; ++i) {
      const int token = own.first_token + i, at = token * kFloatStride + own.key;
      float4 w = load_vec4(raw_w + at);
      add_to(w, base);
      const Wkv7TensorDecay d[4] = {Wkv7TensorDecay(w.x), Wkv7TensorDecay(w.y),
                                    Wkv7TensorDecay(w.z), Wkv7TensorDecay(w.w)};
      const bool present = token < tokens;
      logs[i] = present ? make_float4(d[0].log2, d[1].log2, d[2].log2, d[3].log2)
                        : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (slope != nullptr) {
        store_vec4(slope + at, make_float4(d[0].slope, d[1].slope, d[2].slope, d[3].slope));
      }
      add_to(sum, logs[i]);
    }
    float4 c = own.sum_before(sum);
    float4 grown = fast_exp2(c);
#pragma unroll
    for (int i = 0; i < FourKeys::kTokens; ++i) {
      add_to(c, logs[i]);
      scale_token<kWithR, kWithK>(own.first_token + i, own.key, c, grown);
    }
  }

  // The warps form one of A_ab, A_ak, A_rb, A_rk each, and who has A_ab the inverse. They take
  // turns, so that no quarter of a multiprocessor has it always.
  template <bool kWithR, bool kWithK>
  __device__ __forceinline__ void form_squares(int64_t t) const {
    const int lane = lane_number();
    const int square = (ChunkTile::warp() + static_cast<int>(t / kChunk)) % ChunkTile::kWarps;
    if ((!kWithR && (square & 2) != 0) || (!kWithK && (square & 1) != 0)) return;
    const Rows queries((square & 2) != 0 ? r.base : a.base);
    const Rows keys((square & 1) != 0 ? k.base : b.base);
    Accumulator x[2];
    clear(x[0]), clear(x[1]);
#pragma unroll
    for (int i = 0; i < kN; i += 16) add_keys(x, queries.left(0, i, lane), keys, i, lane);
    keep_same_document(x, (square & 2) != 0, lane);
    if (square == 0) {
      store_mix(x, lane);
      __syncwarp();
      invert(lane);
    } else {
      const Square to(square == 1 ? ak.base : square == 2 ? rb.base : rk.base);
      to.store(split_left(x[0], x[1]), 0, 0, lane);
    }
  }

  // Multiplies two key tiles of a state, or of its gradient, by the decays of the whole chunk.
  __device__ __forceinline__ void scale_keys(ChunkTile::State& S, int tile, int lane) const {
    const float* const whole = growth + kChunk * kFloatStride + tile * 8 + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float2 grown = load_vec2(whole + n * 8);
      scale_columns(S[tile + n], grown.x, grown.y);
    }
  }

  // Of a square, clears what is above the diagonal (or on it) and the pairs of tokens that are in
  // different documents.
  __device__ __forceinline__ void keep_same_document(Accumulator (&x)[2], bool diagonal,
                                                     int lane) const {
    const int last = diagonal ? 0 : 1;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int s = n * 8 + lane % 4 * 2;
      const int of_s[2] = {documents.number[s], documents.number[s + 1]};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = lane / 4 + i * 8, of_row = documents.number[row];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          // No shortcut: a branch costs more than what it saves.
          const bool keeps = (s + j + last <= row) & (of_s[j] == of_row);
          x[n][2 * i + j] = keeps ? x[n][2 * i + j] : 0.0f;
        }
      }
    }
  }

 private:
  // c: with the token, to base 2; grown: exp(c) before the token on entry, with it on return.
  template <bool kWithR, bool kWithK>
  __device__ __forceinline__ void scale_token(int token, int key, const float4& c,
                                              float4& grown) const {
    float* const growth_at = growth + token * kFloatStride + key;
    store_vec4(growth_at, grown);
    set_scaled(a, token, key, raw_a, grown);
    grown = fast_exp2(c);
    const float4 shrunk = fast_inverse(grown);
    if constexpr (kWithR) set_scaled(r, token, key, raw_r, grown);
    if constexpr (kWithK) set_scaled(k, token, key, raw_k, shrunk);
    set_scaled(b, token, key, raw_b, shrunk);
    if (token == kChunk - 1) store_vec4(growth_at + kFloatStride, grown);
  }

  __device__ static void set_scaled(const Rows& to, int token, int key, const ExactRows& raw,
                                    const float4& factor) {
    to.set_vec4(token, key, times(widen_vec4(raw.at(token, key)), factor));
  }

  __device__ __forceinline__ void store_mix(const Accumulator (&x)[2], int lane) const {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* const to = mix + (lane / 4 + i * 8) * kMixStride + n * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(to) = make_float2(x[n][2 * i], x[n][2 * i + 1]);
      }
    }
  }

  // T = (I - A_ab)^-1 by a warp, in blocks of 8 x 8: T_00 and T_11 by forward substitution, a lane
  // a column, and T_10 = T_11 A_10 T_00.
  __device__ __forceinline__ void invert(int lane) const {
    constexpr int kHalf = kChunk / 2;
    const int block = lane / kHalf % 2 * kHalf, column = lane % kHalf, rows = lane / kHalf * 2;
    float own[kHalf];  // of T_00 or T_11
#pragma unroll
    for (int row = 0; row < kHalf; ++row) {
      float sum = row == column ? 1.0f : 0.0f;
      const float* const of_row = mix + (block + row) * kMixStride + block;
#pragma unroll
      for (int i = 0; i < row; ++i) sum += of_row[i] * own[i];
      own[row] = sum;
    }
    float first[kHalf], product[2];  // the column of T_00; two rows' of A_10 T_00, then of T_10
#pragma unroll
    for (int i = 0; i < kHalf; ++i) first[i] = __shfl_sync(kAllLanes, own[i], column);
    multiply_two_rows(product, mix + (kHalf + rows) * kMixStride, first);
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      first[i] = __shfl_sync(kAllLanes, product[i % 2], i / 2 * kHalf + column);
    }
    __syncwarp();
    if (lane / kHalf == 1) {
#pragma unroll
      for (int i = 0; i < kHalf; ++i) mix[(kHalf + i) * kMixStride + kHalf + column] = own[i];
    }
    __syncwarp();
    multiply_two_rows(product, mix + (kHalf + rows) * kMixStride + kHalf, first);
    // Neighbouring lanes have neighbouring columns.
    float next[kHalf], next_product[2];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) next[i] = __shfl_xor_sync(kAllLanes, own[i], 1);
#pragma unroll
    for (int i = 0; i < 2; ++i) next_product[i] = __shfl_xor_sync(kAllLanes, product[i], 1);
    if (column % 2 != 0) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      inverse.set_two(kHalf + rows + i, column, product[i], next_product[i]);
      inverse.set_two(rows + i, kHalf + column, 0.0f, 0.0f);
    }
    if (lane >= kChunk) return;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) inverse.set_two(block + i, block + column, own[i], next[i]);
  }

  // Of two rows of 8, one behind the other in A_ab, and a column.
  __device__ static void multiply_two_rows(float (&product)[2], const float* rows,
                                           const float (&column)[kChunk / 2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 low = load_vec4(rows + i * kMixStride);
      const float4 high = load_vec4(rows + i * kMixStride + 4);
      product[i] = low.x * column[0] + low.y * column[1] + low.z * column[2] + low.w * column[3] +
                   high.x * column[4] + high.y * column[5] + high.z * column[6] +
                   high.w * column[7];
    }
  }
};

}  // namespace rwkv
