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
// counts.
#pragma once

#include "chunk_tile.cuh"
#include "outer_decay.cuh"
#include "outer_params.h"

namespace rwkv {

constexpr int kLevels = 4;  // h = 8, 4, 2, 1

// The level at which tokens t != s are in different halves of the same block.
__device__ inline int level_of(int t, int s) { return __clz(t ^ s) - 28; }

__device__ inline float2 times(const float2& x, const float2& y) {
  return make_float2(x.x * y.x, x.y * y.y);
}
__device__ inline void add_to(float2& sum, const float2& x) { sum.x += x.x, sum.y += x.y; }

// The products of decays that a thread's two keys and four tokens, a quarter of the chunk, need.
struct QuarterDecays {
  static constexpr int kTokens = PairOfKeys::kTokens;

  int quarter;
  float2 prefix[kTokens];  // inside the quarter, before the token
  float2 suffix[kTokens];  // inside the quarter, behind the token
  float2 before, behind, whole;  // of earlier and of later quarters, and of all
  float2 between;                // of the quarter between this one and the chunk's middle
  float2 second, third;          // d of the quarter's tokens 1 and 2

  __device__ __forceinline__ QuarterDecays(const PairOfKeys& own, const float2 (&d)[kTokens])
      : quarter(own.quarter), second(d[1]), third(d[2]) {
    const float2 one = make_float2(1.0f, 1.0f);
    prefix[0] = suffix[kTokens - 1] = before = behind = whole = one;
#pragma unroll
    for (int i = 1; i < kTokens; ++i) {
      prefix[i] = times(prefix[i - 1], d[i - 1]);
      suffix[kTokens - 1 - i] = times(suffix[kTokens - i], d[kTokens - i]);
    }
    float2 all[PairOfKeys::kQuarters];
    PairOfKeys::gather(all, times(prefix[kTokens - 1], d[kTokens - 1]));
#pragma unroll
    for (int n = 0; n < PairOfKeys::kQuarters; ++n) {
      if (n < quarter) before = times(before, all[n]);
      if (n > quarter) behind = times(behind, all[n]);
      whole = times(whole, all[n]);
    }
    between = quarter == 0 ? all[1] : quarter == 3 ? all[2] : one;
  }

  // Whether token i of the quarter is in the second half of its block.
  __device__ bool in_second_half(int level, int i) const {
    return level == 0 ? quarter >= 2 : level == 1 ? quarter % 2 == 1 : level == 2 ? i >= 2 : i % 2;
  }
  // p or q of token i.
  __device__ float2 factor(int level, int i) const {
    const float2 one = make_float2(1.0f, 1.0f);
    if (level == 0) return times(between, in_second_half(0, i) ? prefix[i] : suffix[i]);
    if (level == 1) return in_second_half(1, i) ? prefix[i] : suffix[i];
    return level == 2 && i == 0 ? second : level == 2 && i == kTokens - 1 ? third : one;
  }
  __device__ float2 from_start(int i) const { return times(before, prefix[i]); }  // P
  __device__ float2 to_end(int i) const { return times(behind, suffix[i]); }      // Q
};

// Queries, Keys, Levels: ChunkTile::ByRows or ByColumns, by the way they are read more often.
template <class Queries, class Keys, class Levels> struct OuterChunkShared {
  static constexpr int kN = ChunkTile::kN, kChunk = ChunkTile::kChunk;
  using Values = ChunkTile::ByRows;
  using Square = ChunkTile::Square;

  Queries r;              // R~ [kChunk][kN]
  Keys k;                 // K^
  float* levels;          // X [kLevels][kChunk][kN]
  Values v;               // [kChunk][kN]
  Square square;          // A
  float* whole;           // [kN]: e
  float* bonus;           // [kWarps][kChunk]: sum r u k over the keys of a warp
  ChunkDocuments documents;
  unsigned char *raw_r, *raw_k, *raw_v, *raw_w;

  __host__ __device__ explicit OuterChunkShared(Pieces& pieces)
      : r{pieces.floats(kChunk * Queries::stride)}, k{pieces.floats(kChunk * Keys::stride)},
        levels(pieces.floats(kLevels * kChunk * Levels::stride)),
        v{pieces.floats(kChunk * Values::stride)}, square{pieces.floats(ChunkTile::kSquare)},
        whole(pieces.floats(kN)), bonus(pieces.floats(ChunkTile::kWarps * kChunk)),
        documents(pieces) {
    for (unsigned char** raw : {&raw_r, &raw_k, &raw_v}) *raw = pieces.bytes(kChunk * kN * 2);
    raw_w = pieces.bytes(kChunk * kN * 4);
  }

  __device__ Levels level(int number) const { return {levels + number * kChunk * Levels::stride}; }

  // p: OuterForward or OuterBackward; the copies are not closed as a group.
  template <bool kDecayPerToken, bool kWithQueries, class Params, class Place>
  __device__ void fetch(const Params& p, const Place& place, int64_t t, int tokens) const {
    if constexpr (kWithQueries) place.fetch_keys(raw_r, p.r, p.dtype, t, tokens);
    place.fetch_keys(raw_k, p.k, p.dtype, t, tokens);
    place.fetch_values(raw_v, p.v, p.dtype, t, tokens);
    if constexpr (kDecayPerToken) place.fetch_keys(raw_w, p.w, DType::kFloat, t, tokens);
  }

  // The logarithm of the decay of token `token` of the chunk, 0 beyond the end.
  template <bool kDecayPerToken, class Params, class Place>
  __device__ float2 log_decay(const Params& p, const Place& place, int token, int key,
                              int tokens) const {
    if (token >= tokens) return make_float2(0.0f, 0.0f);
    const float* const w =
        kDecayPerToken ? reinterpret_cast<const float*>(raw_w) + token * kN + key
                       : static_cast<const float*>(p.w) + place.head * kN + key;
    return make_float2(outer_log_decay(w[0]), outer_log_decay(w[1]));
  }

  // Forms R~, K^, X, V, e and the bonus from what was fetched (without kWithQueries only K^, V, e),
  // and finds the documents. logs: null, or where to leave the decays' logarithms, [kChunk][kN].
  template <bool kDecayPerToken, bool kWithQueries, class Params, class Place>
  __device__ __forceinline__ void form_operands(const Params& p, const Place& place, int64_t t,
                                                int tokens, float* logs) const {
    documents.find(p.reset, place, t, tokens);
    widen_values(v, raw_v, p.dtype, tokens);
    const PairOfKeys own;
    float2 d[PairOfKeys::kTokens];
#pragma unroll
    for (int i = 0; i < PairOfKeys::kTokens; ++i) {
      const int token = own.first_token + i;
      const float2 log = log_decay<kDecayPerToken>(p, place, token, own.key, tokens);
      if (logs != nullptr) store_two(logs + token * kN + own.key, log.x, log.y);
      d[i] = make_float2(expf(log.x), expf(log.y));
    }
    const QuarterDecays decays(own, d);
    if (own.quarter == 0) store_two(whole + own.key, decays.whole.x, decays.whole.y);
    const float2 u = kWithQueries
                         ? load_two(static_cast<const float*>(p.u) + place.head * kN + own.key)
                         : make_float2(0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < PairOfKeys::kTokens; ++i) {
      const int token = own.first_token + i, at = token * kN + own.key;
      float2 key = make_float2(0.0f, 0.0f), query = key;
      if (token < tokens) {
        key = load_pair(raw_k, at, p.dtype);
        if constexpr (kWithQueries) query = load_pair(raw_r, at, p.dtype);
      }
      k.set_two(token, own.key, times(key, decays.to_end(i)));
      if constexpr (kWithQueries) {
        r.set_two(token, own.key, times(query, decays.from_start(i)));
        form_levels(decays, i, token, own.key, query, key);
        form_bonus(token, query.x * u.x * key.x + query.y * u.y * key.y);
      }
    }
  }

  // A: the warps form the pairs of one level each, and the first one the diagonal.
  __device__ __forceinline__ void form_square() const {
    const int lane = lane_number(), warp = warp_number();
    Accumulator x[2];
    multiply_rows(x, level(warp).heads(), level(warp).heads(), lane);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = lane / 4 + i / 2 * 8, s = n * 8 + lane % 4 * 2 + i % 2;
        if (t == s) {
          if (warp == 0) *square.at(t, t) = round_tf32(bonus_of(t));
        } else if (level_of(t, s) == warp) {
          *square.at(t, s) = sees(t, s) ? round_tf32(x[n][i]) : 0.0f;
        }
      }
    }
  }

  // Whether token t reads what token s wrote.
  __device__ bool sees(int t, int s) const {
    return s < t && documents.number[s] == documents.number[t];
  }
  __device__ float bonus_of(int t) const {
    float sum = bonus[t];
    for (int n = 1; n < ChunkTile::kWarps; ++n) sum += bonus[n * kChunk + t];
    return sum;
  }

 private:
  __device__ __forceinline__ void form_levels(const QuarterDecays& decays, int i, int token,
                                              int key, const float2& query,
                                              const float2& written) const {
#pragma unroll
    for (int n = 0; n < kLevels; ++n) {
      const float2 x = decays.in_second_half(n, i) ? query : written;
      level(n).set_two(token, key, times(x, decays.factor(n, i)));
    }
  }

  // part: over the thread's keys.
  __device__ __forceinline__ void form_bonus(int token, float part) const {
    const float sum = sum_over_lanes<8>(part);
    if (lane_number() % 8 == 0) bonus[warp_number() * kChunk + token] = sum;
  }
};

}  // namespace rwkv
