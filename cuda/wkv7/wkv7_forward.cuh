// Forward pass of RWKV-7 as a scan over tokens. Per head, S indexed [value j][key i]:
//
//   u[j] = sum_i S[j][i] a[i]      S[j][i] <- S[j][i] d[i] + u[j] b[i] + v[j] k[i]
//   y[j] = sum_i S[j][i] r[i]                                      y reads the new S
//
// A document start needs no branch in the scan: there a and d are staged as zero, so that nothing
// of the old state remains. (An infinite old state would still spread.)
#pragma once

#include "../common/gpu_scan/forward_scan.cuh"
#include "wkv7.h"
#include "wkv7_decay.cuh"

namespace rwkv {

// A chunk of tokens in shared memory: as fetched, and widened to fp32 for the scan.
template <class TileType> struct Wkv7ForwardShared {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kChunk = TileType::kChunk;

  float *r, *d, *k, *a, *b;  // [kChunk][kN]
  float *v, *y;              // [kChunk][kRows]
  unsigned char *raw_r, *raw_k, *raw_a, *raw_b, *raw_v, *raw_w;
  int bytes;

  __host__ __device__ Wkv7ForwardShared(unsigned char* base, DType dtype) {
    Pieces pieces(base);
    for (float** keys : {&r, &d, &k, &a, &b}) *keys = pieces.floats(kChunk * kN);
    for (float** values : {&v, &y}) *values = pieces.floats(kChunk * kRows);
    const int width = element_bytes(dtype);
    for (unsigned char** raw : {&raw_r, &raw_k, &raw_a, &raw_b}) {
      *raw = pieces.bytes(kChunk * kN * width);
    }
    raw_v = pieces.bytes(kChunk * kRows * width);
    raw_w = pieces.bytes(kChunk * kN * 4);
    bytes = pieces.used();
  }
};

// What a block of the forward or of the replay kernel does; kOutput false skips y.
template <class TileType, bool kOutput> struct Wkv7ForwardBlock
    : ScanForwardBlock<Wkv7Forward, TileType, Wkv7ForwardShared<TileType>> {
  using Base = ScanForwardBlock<Wkv7Forward, TileType, Wkv7ForwardShared<TileType>>;
  using Base::Base, Base::p, Base::place, Base::shared, Base::tile;
  using Base::kC, Base::kN, Base::kR, Base::kRows, Base::kThreads;
  using typename Base::State;
  static constexpr int kKeyLanes = TileType::kKeyLanes;
  static constexpr bool kWithOutput = kOutput;

  __device__ void fetch(int64_t t, int tokens) const {
    if constexpr (kWithOutput) place.fetch_keys(shared.raw_r, p.r, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_k, p.k, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_a, p.a, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_b, p.b, p.dtype, t, tokens);
    place.fetch_values(shared.raw_v, p.v, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_w, p.w, DType::kFloat, t, tokens);
    commit_copies();
  }

  __device__ void widen(int64_t t, int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kN / kVec8; n += kThreads) {
      const int at = n * kVec8;
      const Vec8Place<kN> vec(n);
      const bool starts = place.starts(p.reset, t + vec.token);
      const Vec8 zero = Vec8::of(0.0f);
      const Vec8 w = based_w(p, shared.raw_w, at, place.head * kN + vec.at);
      store_floats(shared.d + at, starts ? zero : wkv7_decay(w).decay);
      store_floats(shared.a + at, starts ? zero : load_vec8(shared.raw_a, at, p.dtype));
      store_floats(shared.k + at, load_vec8(shared.raw_k, at, p.dtype));
      store_floats(shared.b + at, load_vec8(shared.raw_b, at, p.dtype));
      if constexpr (kWithOutput) store_floats(shared.r + at, load_vec8(shared.raw_r, at, p.dtype));
    }
    if constexpr (kWithOutput) {
      // Of a head's slices one is enough.
      if (p.bonus != nullptr && place.slice == 0) write_bonus(t, tokens);
    }
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kRows / kVec8; n += kThreads) {
      store_floats(shared.v + n * kVec8, load_vec8(shared.raw_v, n * kVec8, p.dtype));
    }
  }

  // Token n of the chunk.
  __device__ __forceinline__ void step(State& S, int n) const {
    float d[kC], k[kC], a[kC], b[kC], v[kR], u[kR] = {};
    tile.load_keys(a, shared.a + n * kN);
    tile.load_keys(d, shared.d + n * kN);
    tile.load_keys(b, shared.b + n * kN);
    tile.load_keys(k, shared.k + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) u[i] += S[i][c] * a[c];
    }
    reduce_scatter<kR, kKeyLanes, 1>(u, tile.lane);
    all_gather<kR, kKeyLanes>(u, u[0], tile.lane);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) S[i][c] = S[i][c] * d[c] + u[i] * b[c] + v[i] * k[c];
    }
    if constexpr (kWithOutput) {
      float r[kC], y[kR] = {};
      tile.load_keys(r, shared.r + n * kN);
#pragma unroll
      for (int i = 0; i < kR; ++i) {
#pragma unroll
        for (int c = 0; c < kC; ++c) y[i] += S[i][c] * r[c];
      }
      tile.store_row_sums(y, shared.y + n * kRows);
    }
  }

  __device__ void write_outputs(int64_t t, int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kRows / kVec8; n += kThreads) {
      const Vec8Place<kRows> vec(n);
      store_vec8(p.y, place.token(t + vec.token) + place.slice * kRows + vec.at, p.dtype,
                 load_floats(shared.y + n * kVec8));
    }
  }

 private:
  __device__ void write_bonus(int64_t t, int tokens) const {
    constexpr int kVecs = TileType::kChunk * kN / kVec8;
    for (int n = static_cast<int>(threadIdx.x); n < kWholeRounds<kVecs, kThreads>; n += kThreads) {
      const Vec8Place<kN> vec(n);
      const bool present = vec.token < tokens;
      float s = 0.0f;
      if (present) {
        const Vec8 r = load_vec8(shared.raw_r, n * kVec8, p.dtype);
        const Vec8 k = load_vec8(shared.raw_k, n * kVec8, p.dtype);
        const Vec8 bonus = load_vec8(p.bonus, place.head * kN + vec.at, DType::kFloat);
#pragma unroll
        for (int i = 0; i < kVec8; ++i) s += r.at[i] * k.at[i] * bonus.at[i];
      }
      s = sum_over_lanes<Vec8Place<kN>::kPerRow>(s);
      if (present && vec.at == 0) static_cast<float*>(p.s)[place.number(t + vec.token)] = s;
    }
  }
};

}  // namespace rwkv
