// The elementwise end of the chunked backward pass of RWKV-5 and 6: from dR~, dK^, dX and dA to the
// gradients of r, k, u and w. With the names of wkv5_6_chunk_backward.cuh, the gradient of the
// decay's logarithm at token j is a sum of what passes through it, without a subtraction:
//
//   e rowsum(S0 D) + sum_{t>j} (R~ dR~)_t + sum_{s<j} (K^ dK^)_s + per level the sum of (X dX)_t
//   over those tokens of j's half that lie behind j in a second half, before j in a first half
//
// X dX is r times a summand of gr, or k times one of gk. So between the pairs of tokens in
// different halves at h = 8, 4, 2 passes what r, or k, makes of the summands from farther away.
#pragma once

#include "wkv5_6_chunk.cuh"

namespace rwkv {

struct Wkv5_6ChunkBackwardShared : Wkv5_6ChunkShared<Wkv5_6Parts::kAll> {
  using State = ChunkTile::HeadState;

  InTurn<ExactRows> gys;  // dY
  ExactRows own_gv;       // dV
  State before;           // S0
  State after;            // D
  float* state_sums;      // [kWarps][kN]: rowsum(S0 D) over the values of a warp
  int bytes;

  __host__ __device__ explicit Wkv5_6ChunkBackwardShared(unsigned char* base)
      : Wkv5_6ChunkBackwardShared(Pieces(base)) {}

  __device__ ExactRows gy(int turn) const { return gys.of(turn); }
  __device__ const ExactRows& gv() const { return own_gv; }
  // dR~, dK^ and dX take the places of R~, K^ and X, in fp32.
  __device__ Rows gqueries() const { return r; }
  __device__ Rows gkeys() const { return k; }
  __device__ Rows glevel(int number) const { return level(number); }

 private:
  __host__ __device__ explicit Wkv5_6ChunkBackwardShared(Pieces pieces)
      : Wkv5_6ChunkShared(pieces), gys(pieces), own_gv(pieces), before(pieces), after(pieces),
        state_sums(pieces.floats(ChunkTile::kWarps * kN)), bytes(pieces.used()) {}
};

// Of dA, what belongs to a thread's pair of tokens.
struct PairOfGradients {
  float diagonal[FourKeys::kTokens];
  float off_diagonal;  // of the second token's row and the first one's column

  // x: dA, as a warp holds it
  __device__ __forceinline__ PairOfGradients(const Accumulator (&x)[2], int lane) {
    // Pair n of eight tokens is in the rows 2n and 2n + 1 of the lanes with columns 2n and 2n + 1.
    const bool low = lane / 4 < 4;
    const int even = lane / 4 % 4 * 9, odd = even + 4;
    const auto given = [&](int i, int from) {
      const float of_low = __shfl_sync(kAllLanes, x[0][i], from);
      const float of_high = __shfl_sync(kAllLanes, x[1][2 + i], from);
      return low ? of_low : of_high;
    };
    diagonal[0] = given(0, even);
    diagonal[1] = given(1, odd);
    off_diagonal = given(0, odd);
  }
};

// What a thread finds for its four keys and two tokens of a chunk.
struct Wkv5_6ChunkGradients {
  static constexpr int kN = ChunkTile::kN, kTokens = FourKeys::kTokens;
  using Shared = Wkv5_6ChunkBackwardShared;

  const Wkv5_6Pair& mine;
  const FourKeys own;
  float4 r[kTokens], k[kTokens];
  float4 gr[kTokens], gk[kTokens];
  float4 through;           // both tokens
  float4 further[kTokens];  // and one of them

  __device__ __forceinline__ Wkv5_6ChunkGradients(const Wkv5_6Pair& mine) : mine(mine) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) r[i] = widen_vec4(mine.r[i]), k[i] = widen_vec4(mine.k[i]);
  }

  // From the other chunks and from the other pairs of this one.
  __device__ __forceinline__ void find(const Shared& shared) {
    start(shared);
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      const bool second = mine.decays.in_second_half(level);
      float4 given = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        add_to(given, times(choose(second, r[i], k[i]), choose(second, gr[i], gk[i])));
      }
      pass(given, 4 >> level);
      float4 factors[kTokens];
      mine.decays.of_level(level, factors);
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const float4 x = times(factors[i], at(shared.glevel(level), i));
        const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        add_to(gr[i], choose(second, x, zero));
        add_to(gk[i], choose(second, zero, x));
      }
    }
    further[0] = times(r[1], gr[1]);
    further[1] = times(k[0], gk[0]);
  }

  // From inside the pair. sees: the second token the first one
  __device__ __forceinline__ void add_pair(const PairOfGradients& pair, const float4& u, bool sees,
                                           float4& gu) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      add_to(gr[i], times(pair.diagonal[i], times(u, k[i])));
      add_to(gk[i], times(pair.diagonal[i], times(u, r[i])));
      add_to(gu, times(pair.diagonal[i], times(r[i], k[i])));
    }
    const float off_diagonal = sees ? pair.off_diagonal : 0.0f;
    add_to(gr[1], times(off_diagonal, k[0]));
    add_to(gk[0], times(off_diagonal, r[1]));
  }

  // Of the decay's value before both exponentials, at token i.
  __device__ __forceinline__ float4 of_decay(int i) const {
    float4 sum = through;
    add_to(sum, further[i]);
    return times(kLn2, times(sum, mine.logs[i]));
  }

 private:
  __device__ float4 at(const Shared::Rows& rows, int i) const {
    return rows.vec4_of_floats(own.first_token + i, own.key);
  }

  // What comes from other chunks, or passes the whole of this one.
  __device__ __forceinline__ void start(const Shared& shared) {
    float4 factors[kTokens];
    mine.decays.from_start(factors);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) gr[i] = times(factors[i], at(shared.gqueries(), i));
    mine.decays.to_end(factors);
#pragma unroll
    for (int i = 0; i < kTokens; ++i) gk[i] = times(factors[i], at(shared.gkeys(), i));
    through = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (shared.documents.cut()) return;
#pragma unroll
    for (int n = 0; n < ChunkTile::kWarps; ++n) {
      add_to(through, load_vec4(shared.state_sums + n * kN + own.key));
    }
    through = times(through, load_vec4(shared.whole + own.key));
  }

  // Adds what the pairs of the other half give; x: what this pair gives.
  __device__ __forceinline__ void pass(float4 x, int half) {
#pragma unroll
    for (int bit = 1; bit < half; bit *= 2) add_to(x, FourKeys::of_pair(x, bit));
    add_to(through, FourKeys::of_pair(x, half));
  }
};

}  // namespace rwkv
