// Backward pass of RWKV-5 and 6 as a scan from the last token to the first. With S the state before
// token t and G the gradient of the state after it, both [value j][key i], and delta = v . gy:
//
//   gr[i] = sum_j S gy[j] + delta u k      gk[i] = sum_j G v[j] + delta u r      gu[i] += delta r k
//   gv[j] = sum_i G k[i] + (sum_i r u k) gy[j]      gd[i] = sum_j S G      G <- d G + r gy^T
//
// gd needs S and G of the same token, though S is known forwards and G backwards. S starts from the
// state kept before every chunk and is computed again, twice: once to park the state before every
// burst of tokens, once per burst to hold its states in registers. Nothing is subtracted or
// inverted.
//
// At a document start d and gy are staged as zero, so that S gets no gradient and G none from
// before.
#pragma once

#include "../common/gpu_scan/backward_scan.cuh"
#include "wkv5_6_decay.cuh"
#include "wkv5_6_params.h"

namespace rwkv {

enum Wkv5_6Sum { kSumR, kSumK, kSumD, kWkv5_6Sums };

template <class TileType> struct Wkv5_6BackwardShared : BurstShared<TileType, kWkv5_6Sums> {
  using Base = BurstShared<TileType, kWkv5_6Sums>;
  using Base::gv, Base::kParked, Base::parked, Base::sums;
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kChunk = TileType::kChunk;

  float *r, *k, *d, *slope;   // [kChunk][kN]; slope: of the decay by w
  float *v, *gy, *masked_gy;  // [kChunk][kRows]; masked: zero where a document starts
  float *delta, *bonus;       // [kChunk]: v . gy over the slice, and sum_i r u k
  float* gu;                  // [kThreads][kVec8]: each thread's own
  float* gw;                  // [kBurst][kN]: over the tokens met so far
  unsigned char *raw_r, *raw_k, *raw_v, *raw_gy, *raw_w;
  int bytes;

  __host__ __device__ Wkv5_6BackwardShared(unsigned char* base, DType dtype) {
    Pieces pieces(base);
    for (float** keys : {&r, &k, &d, &slope}) *keys = pieces.floats(kChunk * kN);
    for (float** values : {&v, &gy, &masked_gy}) *values = pieces.floats(kChunk * kRows);
    for (float** scalars : {&delta, &bonus}) *scalars = pieces.floats(kChunk);
    sums = pieces.floats(kBurst * TileType::kWarps * kWkv5_6Sums * kN);
    gv = pieces.floats(kBurst * kRows);
    gu = pieces.floats(TileType::kThreads * kVec8);
    gw = pieces.floats(kBurst * kN);
    parked = pieces.floats(kParked * kRows * kN);
    const int width = element_bytes(dtype);
    for (unsigned char** raw : {&raw_r, &raw_k}) *raw = pieces.bytes(kChunk * kN * width);
    for (unsigned char** raw : {&raw_v, &raw_gy}) *raw = pieces.bytes(kChunk * kRows * width);
    raw_w = pieces.bytes(kChunk * kN * 4);
    bytes = pieces.used();
  }
};

// RWKV-6 has a gradient of w per token, RWKV-5 one per head.
template <class TileType, bool kDecayPerToken> using Wkv5_6BackwardBase =
    ScanBackwardBlock<Wkv5_6Backward, TileType, Wkv5_6BackwardShared<TileType>, kWkv5_6Sums,
                      kDecayPerToken ? 3 : 2, 2>;

template <class TileType, bool kDecayPerToken> struct Wkv5_6BackwardBlock
    : Wkv5_6BackwardBase<TileType, kDecayPerToken> {
  using Base = Wkv5_6BackwardBase<TileType, kDecayPerToken>;
  using Base::Base, Base::p, Base::parked, Base::place, Base::range, Base::results, Base::shared;
  using Base::kC, Base::kChunk, Base::kN, Base::kR, Base::kRows, Base::kThreads, Base::tile;
  using typename Base::Keys, typename Base::State, typename Base::Values;
  static constexpr int kStartsIn = 0;

  // S[0]: the state before the chunk on entry, before burst `last` on return
  __device__ __forceinline__ void park_states(State (&S)[kBurst], int last) const {
    for (int n = 0; n < last * kBurst; ++n) {
      if (n > 0 && n % kBurst == 0) tile.park_state(S[0], parked(n / kBurst));
      advance(S[0], S[0], n);
    }
  }

  __device__ void fetch(int64_t t) const {
    const int tokens = range.template tokens_from<kChunk>(t);
    place.fetch_keys(shared.raw_r, p.r, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_k, p.k, p.dtype, t, tokens);
    place.fetch_values(shared.raw_v, p.v, p.dtype, t, tokens);
    place.fetch_values(shared.raw_gy, p.gy, p.dtype, t, tokens);
    if constexpr (kDecayPerToken) {
      place.fetch_keys(shared.raw_w, p.w, DType::kFloat, t, tokens);
    }
    commit_copies();
  }

  // Tokens beyond the end are staged so that they change nothing: zeros, and d = 1.
  __device__ void widen(int64_t t, int tokens) const {
    widen_values(t, tokens);
    // The keys below need delta of tokens that other threads have staged.
    __syncthreads();
    widen_keys(t, tokens);
  }

  // S[0]: the state before the burst, which begins at token `first` of the chunk
  __device__ __forceinline__ void run_burst(State (&S)[kBurst], State& G, int first) const {
#pragma unroll
    for (int m = 1; m < kBurst; ++m) advance(S[m], S[m - 1], first + m - 1);
#pragma unroll
    for (int m = kBurst - 1; m >= 0; --m) step_back(S[m], G, first + m, m);
  }

  __device__ void write_gv(int64_t t, int first, const Vec8Place<kRows>& vec) const {
    const int n = first + vec.token;
    Vec8 gv = load_floats(shared.gv + vec.token * kRows + vec.at);
    const Vec8 gy = load_floats(shared.gy + n * kRows + vec.at);
    const float bonus = shared.bonus[n];
#pragma unroll
    for (int i = 0; i < kVec8; ++i) gv.at[i] += bonus * gy.at[i];
    store_vec8(p.gv, place.token(t + n) + place.slice * kRows + vec.at, p.dtype, gv);
  }

  __device__ void write_sum(int64_t t, int first, const Vec8Place<kN>& vec, int which) const {
    const int n = first + vec.token, at = n * kN + vec.at;
    Vec8 sum = this->sum_over_warps(vec, which);
    if (which == kSumD) {
      const Vec8 slope = load_floats(shared.slope + at);
#pragma unroll
      for (int i = 0; i < kVec8; ++i) sum.at[i] *= slope.at[i];
      if constexpr (kDecayPerToken) {
        results.write(which, p.gw, place, t + n, vec.at, p.gw_dtype, sum);
      }
      return add_to(shared.gw + vec.token * kN + vec.at, sum);
    }
    const Vec8 u = load_vec8(p.u, place.head * kN + vec.at, DType::kFloat);
    const Vec8 other = load_floats((which == kSumR ? shared.k : shared.r) + at);
    const float delta = shared.delta[n];
#pragma unroll
    for (int i = 0; i < kVec8; ++i) sum.at[i] += delta * u.at[i] * other.at[i];
    results.write(which, which == kSumR ? p.gr : p.gk, place, t + n, vec.at, p.dtype, sum);
  }

  __device__ void clear_totals() const {
    store_floats(shared.gu + threadIdx.x * kVec8, Vec8::of(0.0f));
    for (int i = static_cast<int>(threadIdx.x); i < kBurst * kN; i += kThreads) {
      shared.gw[i] = 0.0f;
    }
  }

  __device__ void write_totals() const {
    const bool first = range.end == p.time;
    for (int key = static_cast<int>(threadIdx.x); key < kN; key += kThreads) {
      float gu = 0.0f;
      for (int n = key; n < kThreads * kVec8; n += kN) gu += shared.gu[n];
      results.write_total(0, p.gu, place, key, gu, first);
      float gw = 0.0f;
      for (int m = 0; m < kBurst; ++m) gw += shared.gw[m * kN + key];
      results.write_total(1, kDecayPerToken ? p.gbase : p.gw, place, key, gw, first);
    }
  }

 private:
  __device__ void widen_values(int64_t t, int tokens) const {
    constexpr int kVecs = kChunk * kRows / kVec8;
    for (int n = static_cast<int>(threadIdx.x); n < kWholeRounds<kVecs, kThreads>; n += kThreads) {
      const Vec8Place<kRows> vec(n);
      const int at = n * kVec8;
      const bool present = vec.token < tokens;
      Vec8 v = Vec8::of(0.0f), gy = v;
      if (present) {
        v = load_vec8(shared.raw_v, at, p.dtype);
        gy = load_vec8(shared.raw_gy, at, p.dtype);
      }
      float delta = 0.0f;
#pragma unroll
      for (int i = 0; i < kVec8; ++i) delta += v.at[i] * gy.at[i];
      delta = sum_over_lanes<Vec8Place<kRows>::kPerRow>(delta);
      if (n >= kVecs) continue;
      const bool starts = present && place.starts(p.reset, t + vec.token);
      store_floats(shared.v + at, v);
      store_floats(shared.gy + at, gy);
      store_floats(shared.masked_gy + at, starts ? Vec8::of(0.0f) : gy);
      if (vec.at == 0) shared.delta[vec.token] = delta;
    }
  }

  __device__ void widen_keys(int64_t t, int tokens) const {
    constexpr int kVecs = kChunk * kN / kVec8;
    const int64_t head = place.head * kN;
    for (int n = static_cast<int>(threadIdx.x); n < kWholeRounds<kVecs, kThreads>; n += kThreads) {
      const Vec8Place<kN> vec(n);
      const int at = n * kVec8;
      Vec8 r = Vec8::of(0.0f), k = r;
      Wkv5_6Decay decay = {Vec8::of(1.0f), r};
      if (vec.token < tokens) {
        r = load_vec8(shared.raw_r, at, p.dtype);
        k = load_vec8(shared.raw_k, at, p.dtype);
        if (place.starts(p.reset, t + vec.token)) {
          decay.decay = Vec8::of(0.0f);
        } else {
          decay = wkv5_6_decay(kDecayPerToken ? based_w(p, shared.raw_w, at, head + vec.at)
                                              : load_vec8(p.w, head + vec.at, DType::kFloat));
        }
      }
      if (n < kVecs) {
        store_floats(shared.r + at, r);
        store_floats(shared.k + at, k);
        store_floats(shared.d + at, decay.decay);
        store_floats(shared.slope + at, decay.slope);
      }
      add_bonus(vec, r, k, load_vec8(p.u, head + vec.at, DType::kFloat));
    }
  }

  __device__ void add_bonus(const Vec8Place<kN>& vec, const Vec8& r, const Vec8& k,
                            const Vec8& u) const {
    float* const own = shared.gu + threadIdx.x * kVec8;
    const bool present = vec.token < kChunk;
    const float delta = present ? shared.delta[vec.token] : 0.0f;
    Vec8 gu = load_floats(own);
    float bonus = 0.0f;
#pragma unroll
    for (int i = 0; i < kVec8; ++i) {
      bonus += r.at[i] * u.at[i] * k.at[i];
      gu.at[i] += delta * r.at[i] * k.at[i];
    }
    store_floats(own, gu);
    bonus = sum_over_lanes<Vec8Place<kN>::kPerRow>(bonus);
    if (present && vec.at == 0) shared.bonus[vec.token] = bonus;
  }

  // to: the state after token n of the chunk, from: the one before it
  __device__ __forceinline__ void advance(State& to, const State& from, int n) const {
    Keys k, d;
    Values v;
    tile.load_keys(k, shared.k + n * kN);
    tile.load_keys(d, shared.d + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) to[i][c] = d[c] * from[i][c] + k[c] * v[i];
    }
  }

  // Token n of the chunk, m of the burst.
  __device__ __forceinline__ void step_back(const State& S, State& G, int n, int m) const {
    Keys r, k, d, gr = {}, gk = {}, gd = {};
    Values v, gy, gv = {};
    tile.load_keys(r, shared.r + n * kN);
    tile.load_keys(k, shared.k + n * kN);
    tile.load_keys(d, shared.d + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
    tile.load_rows(gy, shared.masked_gy + n * kRows);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        gr[c] += gy[i] * S[i][c];
        gk[c] += v[i] * G[i][c];
        gd[c] += S[i][c] * G[i][c];
        gv[i] += k[c] * G[i][c];
        G[i][c] = d[c] * G[i][c] + r[c] * gy[i];
      }
    }
    tile.store_row_sums(gv, shared.gv + m * kRows);
    tile.store_key_sums(gr, shared.sums_of(m, tile.warp, kSumR));
    tile.store_key_sums(gk, shared.sums_of(m, tile.warp, kSumK));
    tile.store_key_sums(gd, shared.sums_of(m, tile.warp, kSumD));
  }

  // Always by the same thread for the same place, so that no barrier is needed.
  __device__ static void add_to(float* total, const Vec8& x) {
    Vec8 sum = load_floats(total);
    add_vec8(sum, x);
    store_floats(total, sum);
  }
};

}  // namespace rwkv
