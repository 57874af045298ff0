// The elementwise end of the chunked backward pass of RWKV-5 and 6: from dR~, dK^, dX and delta to
// the gradients of r, k, u and w. The formulas: outer_chunk_backward.cuh.
#pragma once

#include "outer_chunk.cuh"

namespace rwkv {

// Split are the operands on which the decay's gradient rests, in RWKV-5 a sum over all tokens:
// where few channels remember, what it leaves may be a small part of its terms.
struct OuterChunkBackwardShared
    : OuterChunkShared<ChunkTile::ByColumns::With<Held::kSplit>, ChunkTile::ByRows,
                       ChunkTile::ByColumns::With<Held::kSplit>> {
  using State = ChunkTile::ByColumns::With<Held::kSplit>;
  using Pairs = Square::With<Held::kSplit>;
  using Rows = ChunkTile::ByColumns::With<Held::kFp32>;

  Values gy;          // [kChunk][kN]: dY
  float* pairs;       // M of every level, as squares
  float* delta;       // [kChunk]
  State before;       // S0 [kN values][kN keys]
  State after;        // D, likewise
  float* logs;        // [kChunk][kN]: the decays' logarithms
  float* state_sums;  // [kWarps][kN]: rowsum(S0 D) over the values of a warp
  unsigned char* raw_gy;
  unsigned char *kept_r, *kept_k;  // raw_r and raw_k, which are overwritten by the next chunk's
  int bytes;

  __host__ __device__ explicit OuterChunkBackwardShared(unsigned char* base)
      : OuterChunkBackwardShared(Pieces(base)) {}

  __device__ Pairs pair(int level) const { return {pairs + level * ChunkTile::kSquare}; }
  // What was before and after the chunk gives its place to the results: dX of every level, dR~, dK^
  // and dV.
  __device__ Rows result(int number) const {
    return number < kLevels ? Rows{before.base + number * kChunk * Rows::stride}
                            : Rows{after.base + (number - kLevels) * kChunk * Rows::stride};
  }
  __device__ Rows gqueries() const { return result(kLevels); }
  __device__ Rows gkeys() const { return result(kLevels + 1); }
  __device__ Rows gv() const { return result(kLevels + 2); }

 private:
  __host__ __device__ explicit OuterChunkBackwardShared(Pieces pieces)
      : OuterChunkShared(pieces), gy{pieces.floats(kChunk * Values::stride)},
        pairs(pieces.floats(kLevels * ChunkTile::kSquare)), delta(pieces.floats(kChunk)),
        before{pieces.floats(kN * State::stride)}, after{pieces.floats(kN * State::stride)},
        logs(pieces.floats(kChunk * kN)), state_sums(pieces.floats(ChunkTile::kWarps * kN)),
        raw_gy(pieces.bytes(kChunk * kN * 2)), kept_r(pieces.bytes(kChunk * kN * 2)),
        kept_k(pieces.bytes(kChunk * kN * 2)), bytes(pieces.used()) {}
};

// What a thread finds for its two keys and four tokens of a chunk.
template <bool kDecayPerToken> struct OuterChunkGradients {
  using Shared = OuterChunkBackwardShared;
  using Place = HeadPlace<ChunkTile>;
  static constexpr int kN = ChunkTile::kN, kTokens = PairOfKeys::kTokens;

  const OuterBackward& p;
  const Place& place;
  const Shared& shared;
  const PairOfKeys own;
  const QuarterDecays decays;
  float2 queries[kTokens], keys[kTokens], halves[kTokens];  // R~ dR~, K^ dK^, X dX at level 0
  float2 through[kTokens];                                  // gradients of the decays' logarithms

  __device__ __forceinline__ OuterChunkGradients(const OuterBackward& p, const Place& place,
                                                 const Shared& shared)
      : p(p), place(place), shared(shared), decays(decays_of(own, shared)) {}

  // Writes gr, gk and (for RWKV-6) gw; adds to gu and (for RWKV-5) gw.
  __device__ __forceinline__ void write(int64_t t, int tokens, float2& gu, float2& gw) {
    start_decay_gradients();
    const float2 u = load_two(static_cast<const float*>(p.u) + place.head * kN + own.key);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int n = own.first_token + i;
      float2 gr, gk;
      find_token(i, n, u, gr, gk, gu);
      if (n < tokens) {
        const int64_t to = place.token(t + n) + own.key;
        store_pair(p.gr, to, p.dtype, gr.x, gr.y);
        store_pair(p.gk, to, p.dtype, gk.x, gk.y);
      }
    }
    add_wide_sums();
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (own.first_token + i < tokens) write_decay(t, own.first_token + i, through[i], gw);
    }
  }

 private:
  __device__ __forceinline__ static QuarterDecays decays_of(const PairOfKeys& own,
                                                            const Shared& shared) {
    float2 d[kTokens];
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const float2 log = load_two(shared.logs + (own.first_token + i) * kN + own.key);
      d[i] = make_float2(expf(log.x), expf(log.y));
    }
    return QuarterDecays(own, d);
  }

  // What passes from the state before the chunk to the one after it passes through every token.
  __device__ __forceinline__ void start_decay_gradients() {
    float2 sum = make_float2(0.0f, 0.0f);
    for (int n = 0; n < ChunkTile::kWarps; ++n) {
      add_to(sum, load_two(shared.state_sums + n * kN + own.key));
    }
    const float2 whole = shared.documents.cut() ? make_float2(0.0f, 0.0f) : decays.whole;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) through[i] = times(sum, whole);
  }

  // Token n of the chunk, number i of the quarter.
  __device__ __forceinline__ void find_token(int i, int n, const float2& u, float2& gr, float2& gk,
                                             float2& gu) {
    const float2 r = load_pair(shared.kept_r, n * kN + own.key, p.dtype);
    const float2 k = load_pair(shared.kept_k, n * kN + own.key, p.dtype);
    const float delta = shared.delta[n];
    const float2 bonus = make_float2(delta * u.x, delta * u.y);
    const float2 from_query =
        times(decays.from_start(i), load_two(shared.gqueries().at(n, own.key)));
    const float2 from_key = times(decays.to_end(i), load_two(shared.gkeys().at(n, own.key)));
    gr = times(bonus, k), gk = times(bonus, r);
    add_to(gr, from_query);
    add_to(gk, from_key);
    queries[i] = times(r, from_query), keys[i] = times(k, from_key);
    gu.x += delta * r.x * k.x, gu.y += delta * r.y * k.y;
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      const bool second = decays.in_second_half(level, i);
      const float2 x =
          times(decays.factor(level, i), load_two(shared.result(level).at(n, own.key)));
      if (second) add_to(gr, x);
      else add_to(gk, x);
      add_level(level, i, second, times(second ? r : k, x));
    }
  }

  // Adds X dX of token i to the tokens of its half that it passes through, as far as they are in
  // this quarter; at the last level there are none.
  __device__ __forceinline__ void add_level(int level, int i, bool second, const float2& x) {
    if (level == 0) halves[i] = x;
    if (level == 1) {
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        if (j != i && (j < i) == second) add_to(through[j], x);
      }
    }
    if (level == 2 && i == 0) add_to(through[1], x);
    if (level == 2 && i == kTokens - 1) add_to(through[kTokens - 2], x);
  }

  // Adds the sums over tokens that reach beyond a quarter: of queries behind the token, of keys
  // before it, and at level 0 of the tokens of its half.
  __device__ __forceinline__ void add_wide_sums() {
    constexpr int kQuarters = PairOfKeys::kQuarters;
    float2 sums[3] = {};
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      add_to(sums[0], queries[i]);
      add_to(sums[1], keys[i]);
      add_to(sums[2], halves[i]);
    }
    float2 all[3][kQuarters], behind = make_float2(0.0f, 0.0f), before = behind;
#pragma unroll
    for (int n = 0; n < 3; ++n) PairOfKeys::gather(all[n], sums[n]);
#pragma unroll
    for (int n = 0; n < kQuarters; ++n) {
      if (n > own.quarter) add_to(behind, all[0][n]);
      if (n < own.quarter) add_to(before, all[1][n]);
    }
    if (own.quarter == 2) add_to(behind, all[2][3]);
    if (own.quarter == 1) add_to(before, all[2][0]);
    const bool second = own.quarter >= 2;
#pragma unroll
    for (int i = kTokens - 1; i >= 0; --i) {
      add_to(through[i], behind);
      add_to(behind, queries[i]);
      if (second) add_to(behind, halves[i]);
    }
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      add_to(through[i], before);
      add_to(before, keys[i]);
      if (!second) add_to(before, halves[i]);
    }
  }

  // gradient: of the decay's logarithm at token n of the chunk.
  __device__ __forceinline__ void write_decay(int64_t t, int n, const float2& gradient,
                                              float2& total) const {
    const float kept = place.starts(p.reset, t + n) ? 0.0f : 1.0f;
    const float2 log = load_two(shared.logs + n * kN + own.key);
    const float2 x = make_float2(kept * gradient.x * log.x, kept * gradient.y * log.y);
    if constexpr (kDecayPerToken) {
      store_two(static_cast<float*>(p.gw) + place.token(t + n) + own.key, x.x, x.y);
    } else {
      add_to(total, x);
    }
  }
};

}  // namespace rwkv
