// Forward pass of RWKV-5 and 6 as a scan over tokens. Per head, S indexed [value j][key i]:
//
//   y[j] = sum_i r[i] (S[j][i] + u[i] k[i] v[j])        S[j][i] <- d[i] S[j][i] + k[i] v[j]
//
// A document start needs no branch in the scan: there r and d are staged as zero, so that y does
// not see the old state and the new one does not keep it. (An infinite old state would still
// spread.)
#pragma once

#include "../common/gpu_scan/forward_scan.cuh"
#include "wkv5_6_decay.cuh"
#include "wkv5_6_params.h"

namespace rwkv {

// A chunk of tokens in shared memory: as fetched, and widened to fp32 for the scan.
template <class TileType> struct Wkv5_6ForwardShared {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kChunk = TileType::kChunk;

  float *r, *k, *d;  // [kChunk][kN]
  float *v, *y;      // [kChunk][kRows]
  float* bonus;      // [kChunk]: sum_i r u k
  unsigned char *raw_r, *raw_k, *raw_v, *raw_w;
  int bytes;

  __host__ __device__ Wkv5_6ForwardShared(unsigned char* base, DType dtype) {
    Pieces pieces(base);
    for (float** keys : {&r, &k, &d}) *keys = pieces.floats(kChunk * kN);
    for (float** values : {&v, &y}) *values = pieces.floats(kChunk * kRows);
    bonus = pieces.floats(kChunk);
    const int width = element_bytes(dtype);
    for (unsigned char** raw : {&raw_r, &raw_k}) *raw = pieces.bytes(kChunk * kN * width);
    raw_v = pieces.bytes(kChunk * kRows * width);
    raw_w = pieces.bytes(kChunk * kN * 4);
    bytes = pieces.used();
  }
};

// What a block of the forward or of the replay kernel does; kOutput false skips y.
template <class TileType, bool kDecayPerToken, bool kOutput> struct Wkv5_6ForwardBlock
    : ScanForwardBlock<Wkv5_6Forward, TileType, Wkv5_6ForwardShared<TileType>> {
  using Base = ScanForwardBlock<Wkv5_6Forward, TileType, Wkv5_6ForwardShared<TileType>>;
  using Base::Base, Base::p, Base::place, Base::shared, Base::tile;
  using Base::kC, Base::kChunk, Base::kN, Base::kR, Base::kRows, Base::kThreads;
  using typename Base::State;
  static constexpr bool kWithOutput = kOutput;

  __device__ void fetch(int64_t t, int tokens) const {
    if constexpr (kWithOutput) place.fetch_keys(shared.raw_r, p.r, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_k, p.k, p.dtype, t, tokens);
    place.fetch_values(shared.raw_v, p.v, p.dtype, t, tokens);
    if constexpr (kDecayPerToken) {
      place.fetch_keys(shared.raw_w, p.w, DType::kFloat, t, tokens);
    }
    commit_copies();
  }

  __device__ void widen(int64_t t, int tokens) const {
    widen_keys(t, tokens);
    widen_values(tokens);
  }

  // Token n of the chunk.
  __device__ __forceinline__ void step(State& S, int n) const {
    float k[kC], d[kC], v[kR];
    tile.load_keys(k, shared.k + n * kN);
    tile.load_keys(d, shared.d + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
    if constexpr (kWithOutput) {
      float r[kC], y[kR];
      tile.load_keys(r, shared.r + n * kN);
#pragma unroll
      for (int i = 0; i < kR; ++i) {
        y[i] = r[0] * S[i][0];
#pragma unroll
        for (int c = 1; c < kC; ++c) y[i] += r[c] * S[i][c];
      }
      tile.store_row_sums(y, shared.y + n * kRows);
    }
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) S[i][c] = d[c] * S[i][c] + k[c] * v[i];
    }
  }

  __device__ void write_outputs(int64_t t, int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kRows / kVec8; n += kThreads) {
      const Vec8Place<kRows> vec(n);
      Vec8 y = load_floats(shared.y + n * kVec8);
      const Vec8 v = load_floats(shared.v + n * kVec8);
      const float bonus = shared.bonus[vec.token];
#pragma unroll
      for (int i = 0; i < kVec8; ++i) y.at[i] += bonus * v.at[i];
      store_vec8(p.y, place.token(t + vec.token) + place.slice * kRows + vec.at, p.dtype, y);
    }
  }

 private:
  __device__ void widen_keys(int64_t t, int tokens) const {
    constexpr int kVecs = kChunk * kN / kVec8;
    const int64_t head = place.head * kN;
    for (int n = static_cast<int>(threadIdx.x); n < kWholeRounds<kVecs, kThreads>; n += kThreads) {
      const Vec8Place<kN> vec(n);
      const int at = n * kVec8;
      const bool present = vec.token < tokens;
      const bool starts = present && place.starts(p.reset, t + vec.token);
      if (present) {
        store_floats(shared.k + at, load_vec8(shared.raw_k, at, p.dtype));
        const Vec8 w = kDecayPerToken ? based_w(p, shared.raw_w, at, head + vec.at)
                                      : load_vec8(p.w, head + vec.at, DType::kFloat);
        store_floats(shared.d + at, starts ? Vec8::of(0.0f) : wkv5_6_decay(w).decay);
      }
      if constexpr (kWithOutput) widen_r(vec, at, head, present, starts);
    }
  }

  __device__ void widen_r(const Vec8Place<kN>& vec, int at, int64_t head, bool present,
                          bool starts) const {
    float bonus = 0.0f;
    if (present) {
      const Vec8 r = load_vec8(shared.raw_r, at, p.dtype);
      const Vec8 k = load_vec8(shared.raw_k, at, p.dtype);
      const Vec8 u = load_vec8(p.u, head + vec.at, DType::kFloat);
#pragma unroll
      for (int i = 0; i < kVec8; ++i) bonus += r.at[i] * u.at[i] * k.at[i];
      store_floats(shared.r + at, starts ? Vec8::of(0.0f) : r);
    }
    bonus = sum_over_lanes<Vec8Place<kN>::kPerRow>(bonus);
    if (present && vec.at == 0) shared.bonus[vec.token] = bonus;
  }

  __device__ void widen_values(int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kRows / kVec8; n += kThreads) {
      store_floats(shared.v + n * kVec8, load_vec8(shared.raw_v, n * kVec8, p.dtype));
    }
  }
};

}  // namespace rwkv
