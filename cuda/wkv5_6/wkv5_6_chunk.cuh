// What the chunked kernels of RWKV-5 and 6 share: a chunk of 16 tokens as matrices. Per key, with
// d_t the decays:
//
//   P_t = prod_{j<t} d_j    Q_t = prod_{j>t} d_j    e = prod_j d_j    R~ = r P    K^ = k Q
//   A[t][s] = sum_i r_t k_s prod_{s<j<t} d_j for s < t,   sum_i r_t u k_t for s = t,   0 for s > t
//   Y = R~ S0^T + A V        S = S0 diag(e) + V^T K^
//
// Decays of RWKV-6 may be zero, so no factor of A may be the inverse of a decay. By halves instead:
// for h = 8, 4, 2, 1 cut the chunk into blocks of 2h tokens; a pair (t, s) with s in the first and
// t in the second half of a block has the factors p_t = prod_{j in second half, j<t} d_j and q_s =
// prod_{j in first half, j>s} d_j, all at most 1. Every pair s < t is met at one h. As a token is
// in one half only, a level needs one matrix: X_t = r_t p_t or k_t q_t, and A is X X^T where it
// counts. At h = 1 the factors are 1, and a thread has both tokens: it finds its part of the sum.
#pragma once

#include "../common/gpu/warp_reduce.cuh"
#include "../common/gpu_chunks/chunk_fetch.cuh"
#include "wkv5_6_chunk_decays.cuh"
#include "wkv5_6_decay.cuh"
#include "wkv5_6_params.h"

namespace rwkv {

// What a thread has of a chunk: its four keys and two tokens.
struct Wkv5_6Pair {
  uint2 r[FourKeys::kTokens], k[FourKeys::kTokens];  // bf16
  float4 logs[FourKeys::kTokens];                    // of the decays, to base 2
  PairDecays decays;
};

// What a kernel needs of a chunk: all, or the operands alone with which the state, or its gradient,
// passes it.
enum class Wkv5_6Parts { kAll, kStates, kGradients };

template <Wkv5_6Parts kParts> struct Wkv5_6ChunkShared {
  static constexpr bool kWithKeys = kParts != Wkv5_6Parts::kGradients;
  static constexpr bool kWithQueries = kParts != Wkv5_6Parts::kStates;
  static constexpr bool kWithPairs = kParts == Wkv5_6Parts::kAll;
  static constexpr int kN = ChunkTile::kN, kChunk = ChunkTile::kChunk;
  static constexpr int kFloatStride = ChunkTile::kFloatStride, kTokens = FourKeys::kTokens;
  using Rows = ChunkTile::Rows;
  using ExactRows = ChunkTile::ExactRows;
  using Square = ChunkTile::Square;

  Rows r, k;         // R~, K^
  uint16_t* levels;  // X of every level, as Rows
  Square square;     // A
  float* whole;      // [kN]: e
  // [kWarps][kPairs][4]: sums over the keys of a warp, of a pair of tokens r u k of both, r of the
  // second k of the first, and 0
  float* sums;
  ChunkDocuments documents;
  ExactRows raw_r, raw_k;  // as fetched
  float* raw_w;            // [kChunk][kFloatStride]
  InTurn<ExactRows> values;

  __host__ __device__ explicit Wkv5_6ChunkShared(Pieces& pieces)
      : Wkv5_6ChunkShared(pieces, Pieces(nullptr)) {}

  __device__ ExactRows v(int turn) const { return values.of(turn); }
  __device__ Rows level(int number) const { return Rows(levels + number * Rows::elements); }

  // p: Wkv5_6Forward or Wkv5_6Backward; the copies are not closed as a group.
  template <bool kDecayPerToken, class Params>
  __device__ void fetch(const Params& p, const ChunkFetch& chunk, int turn) const {
    if constexpr (kWithQueries) chunk.copy(raw_r, p.r);
    if constexpr (kWithKeys) {
      chunk.copy(raw_k, p.k);
      chunk.copy(v(turn), p.v);
    }
    if constexpr (kDecayPerToken) chunk.copy(raw_w, p.w);
  }

  // Forms R~, K^, X, e and the sums from what was fetched, as far as they are needed, and finds the
  // documents. Tokens beyond the end are zeros that do not decay.
  template <bool kDecayPerToken, class Params, class Place>
  __device__ __forceinline__ Wkv5_6Pair form_operands(const Params& p, const Place& place,
                                                      int64_t t, int tokens) const {
    documents.find(p.reset, place, t, tokens);
    const FourKeys own;
    Wkv5_6Pair mine;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int token = own.first_token + i;
      if constexpr (kWithKeys) {
        mine.k[i] = *reinterpret_cast<const uint2*>(raw_k.at(token, own.key));
      }
      if constexpr (kWithQueries) {
        mine.r[i] = *reinterpret_cast<const uint2*>(raw_r.at(token, own.key));
      }
      mine.logs[i] = log_decays<kDecayPerToken>(p, place, token, own.key, tokens);
    }
    const float4 product = mine.decays.find(own, mine.logs);
    if (own.pair == 0) store_vec4(whole + own.key, product);
    float4 keys[kTokens], queries[kTokens], factors[kTokens];
    if constexpr (kWithKeys) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) keys[i] = widen_vec4(mine.k[i]);
      mine.decays.to_end(factors);
      set_pair(k, own, keys, factors);
    }
    if constexpr (kWithQueries) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) queries[i] = widen_vec4(mine.r[i]);
    }
    if constexpr (kWithPairs) {
      form_sums(load_vec4(static_cast<const float*>(p.u) + place.head * kN + own.key), queries,
                keys);
    }
    if constexpr (kWithQueries) {
      mine.decays.from_start(factors);
      set_pair(r, own, queries, factors);
    }
    if constexpr (kWithPairs) form_levels(mine.decays, own, queries, keys);
    return mine;
  }

  // A: three warps form the pairs of a level each, the fourth one the diagonal and what is next to
  // it. By words of two neighbours: in a square of 8 x 8 tokens a lane has row g and columns s and
  // s + 1, which are at the same level, or on the diagonal and next to it.
  __device__ __forceinline__ void form_square() const {
    const int lane = lane_number(), warp = ChunkTile::warp(), g = lane / 4, s = lane % 4 * 2;
    if (warp == kLevels) return form_diagonal(lane, g, s);
    Accumulator x;
    clear(x);
    // Of X X^T, which is symmetric, eight columns have all pairs: the tokens of first halves among
    // 0 .. 7, as s, and those of second halves among 8 .. 15, as t.
    const bool other = (g & 8 >> warp) != 0;
#pragma unroll
    for (int i = 0; i < kN; i += 16) {
      const Split<LeftOperand> rows = level(warp).left(0, i, lane);
      multiply_add(x, rows, Split<RightOperand>{columns_of(rows.head, other),
                                                columns_of(rows.tail, other)});
    }
    const SplitPair low = SplitPair::of(x[0], x[1]), high = SplitPair::of(x[2], x[3]);
    if (warp == 0) return square.set_pair(g + 8, s, kept(high, seen(g + 8, s)));
    const SplitPair turned = transposed(high);
    if (s > g || level_of(g, s) != warp) return;
    square.set_pair(g, s, kept(low, seen(g, s)));
    square.set_pair(g + 8, s + 8, kept(turned, seen(g + 8, s + 8)));
  }

  // Multiplies two key tiles of a state, or of its gradient, by the decays of the whole chunk.
  __device__ __forceinline__ void scale_keys(ChunkTile::State& S, int tile, int lane) const {
#pragma unroll
    for (int n = tile; n < tile + 2; ++n) {
      const float2 factor = load_vec2(whole + n * 8 + lane % 4 * 2);
      scale_columns(S[n], factor.x, factor.y);
    }
  }

  // Whether token t reads what token s wrote.
  __device__ bool sees(int t, int s) const {
    return (s < t) & (documents.number[s] == documents.number[t]);
  }
  // Of tokens s and s + 1, as a word; s even.
  __device__ __forceinline__ unsigned seen(int t, int s) const {
    return (sees(t, s) ? 0xffffu : 0u) | (sees(t, s + 1) ? 0xffff0000u : 0u);
  }
  __device__ static SplitPair kept(const SplitPair& pair, unsigned mask) {
    return {pair.head & mask, pair.tail & mask};
  }
  __device__ static SplitPair transposed(const SplitPair& pair) {
    return {transpose_matrix(pair.head), transpose_matrix(pair.tail)};
  }
  // Rows 0 .. 7 of a left operand as the columns of a right one, or rows 8 .. 15.
  __device__ static RightOperand columns_of(const LeftOperand& rows, bool other) {
    return {{other ? rows.bits[1] : rows.bits[0], other ? rows.bits[3] : rows.bits[2]}};
  }

 private:
  __host__ __device__ Wkv5_6ChunkShared(Pieces& pieces, Pieces unneeded)
      : r(kWithQueries ? pieces : unneeded), k(kWithKeys ? pieces : unneeded),
        levels(reinterpret_cast<uint16_t*>(
            (kWithPairs ? pieces : unneeded).bytes(kLevels * Rows::elements * 2))),
        square(kWithPairs ? pieces : unneeded), whole(pieces.floats(kN)),
        sums((kWithPairs ? pieces : unneeded).floats(ChunkTile::kWarps * kWarp)), documents(pieces),
        raw_r(kWithQueries ? pieces : unneeded), raw_k(kWithKeys ? pieces : unneeded),
        raw_w(pieces.floats(kChunk * kFloatStride)), values(kWithKeys ? pieces : unneeded) {}

  // The logarithms to base 2 of the decays of token `token` of the chunk, 0 beyond the end.
  template <bool kDecayPerToken, class Params, class Place>
  __device__ __forceinline__ float4 log_decays(const Params& p, const Place& place, int token,
                                               int key, int tokens) const {
    const float* const w = kDecayPerToken ? raw_w + token * kFloatStride + key
                                          : static_cast<const float*>(p.w) + place.head * kN + key;
    float4 x = load_vec4(w);
    if (kDecayPerToken && p.base != nullptr) {
      add_to(x, load_vec4(static_cast<const float*>(p.base) + place.head * kN + key));
    }
    return token < tokens ? make_float4(wkv5_6_log2_decay(x.x), wkv5_6_log2_decay(x.y),
                                        wkv5_6_log2_decay(x.z), wkv5_6_log2_decay(x.w))
                          : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }

  __device__ __forceinline__ static void set_pair(const Rows& to, const FourKeys& own,
                                                  const float4 (&x)[kTokens],
                                                  const float4 (&factors)[kTokens]) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      to.set_vec4(own.first_token + i, own.key, times(x[i], factors[i]));
    }
  }

  __device__ __forceinline__ void form_levels(const PairDecays& decays, const FourKeys& own,
                                              const float4 (&queries)[kTokens],
                                              const float4 (&keys)[kTokens]) const {
#pragma unroll
    for (int n = 0; n < kLevels; ++n) {
      const bool second = decays.in_second_half(n);
      const float4 x[kTokens] = {choose(second, queries[0], keys[0]),
                                 choose(second, queries[1], keys[1])};
      float4 factors[kTokens];
      decays.of_level(n, factors);
      set_pair(level(n), own, x, factors);
    }
  }

  __device__ __forceinline__ void form_sums(const float4& u, const float4 (&queries)[kTokens],
                                            const float4 (&keys)[kTokens]) const {
    float mine[4] = {sum_of(times(times(queries[0], u), keys[0])),
                     sum_of(times(times(queries[1], u), keys[1])),
                     sum_of(times(queries[1], keys[0])), 0.0f};
    reduce_scatter<4, 4, 1>(mine, lane_number());
    sums[ChunkTile::thread()] = mine[0];
  }

  // The words on the diagonal, and zeros for those above it.
  __device__ __forceinline__ void form_diagonal(int lane, int g, int s) const {
    float sum = sums[lane];
#pragma unroll
    for (int n = 1; n < ChunkTile::kWarps; ++n) sum += sums[n * kWarp + lane];
    const bool odd = g % 2 != 0;
    square.set_pair(g, s + 8, {0, 0});
#pragma unroll
    for (int first = 0; first < kChunk; first += 8) {
      // Lanes 4 n .. have the sums of pair n.
      const int from = (first + s) / 2 * 4, t = first + g;
      const float left = __shfl_sync(kAllLanes, sum, odd ? from + 2 : from);
      const float right = __shfl_sync(kAllLanes, sum, from + 1);
      SplitPair pair = {0, 0};
      if (g / 2 == s / 2) {
        pair = odd ? SplitPair::of(sees(t, t - 1) ? left : 0.0f, right) : SplitPair::of(left, 0.0f);
      }
      if (s + 1 >= g) square.set_pair(t, first + s, pair);
    }
  }
};

}  // namespace rwkv
