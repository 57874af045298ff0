// WKV-7's pieces as a scan over tokens. Per head, S indexed [value j][key i], forwards:
//
//   u[j] = sum_i S[j][i] a[i]      S[j][i] <- S[j][i] d[i] + u[j] b[i] + v[j] k[i]
//
// and for the gradient of the state, from the last token on, keys and values being r and gy:
//
//   S[j][i] <- S[j][i] + v[j] k[i]
//   u[j] = sum_i S[j][i] b[i]      S[j][i] <- S[j][i] d[i] + u[j] a[i]
//
// At a document start a and d are staged as zero: forwards nothing of what was before it remains,
// backwards nothing of what was behind it.
#pragma once

#include "../common/gpu_scan/piece_scan.cuh"
#include "../wkv7/wkv7_decay.cuh"
#include "wkv7_piece.h"

namespace rwkv {

// A chunk of tokens in shared memory: as fetched, and widened to fp32 for the scan.
template <class TileType> struct Wkv7PieceShared {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kChunk = TileType::kChunk;

  float *d, *k, *a, *b;  // [kChunk][kN]
  float* v;              // [kChunk][kRows]
  unsigned char *raw_k, *raw_a, *raw_b, *raw_v, *raw_w;
  int bytes;

  __host__ __device__ Wkv7PieceShared(unsigned char* base, DType dtype) {
    Pieces pieces(base);
    for (float** keys : {&d, &k, &a, &b}) *keys = pieces.floats(kChunk * kN);
    v = pieces.floats(kChunk * kRows);
    const int width = element_bytes(dtype);
    for (unsigned char** raw : {&raw_k, &raw_a, &raw_b}) *raw = pieces.bytes(kChunk * kN * width);
    raw_v = pieces.bytes(kChunk * kRows * width);
    raw_w = pieces.bytes(kChunk * kN * 4);
    bytes = pieces.used();
  }
};

template <class TileType, bool kBackwards> struct Wkv7PieceBlock
    : PieceScanBlock<Wkv7Piece, TileType, Wkv7PieceShared<TileType>> {
  using Base = PieceScanBlock<Wkv7Piece, TileType, Wkv7PieceShared<TileType>>;
  using Base::Base, Base::p, Base::place, Base::shared, Base::tile;
  using Base::kC, Base::kN, Base::kR, Base::kRows, Base::kThreads;
  using typename Base::State;
  static constexpr bool kHasTransition = !kBackwards;

  __device__ void fetch(int64_t t, int tokens) const {
    place.fetch_keys(shared.raw_k, p.keys, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_a, p.a, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_b, p.b, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_w, p.w, DType::kFloat, t, tokens);
    Base::fetch_values(t, tokens);
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
    }
    Base::widen_values(tokens);
  }

  // Token n of the chunk.
  __device__ __forceinline__ void step(State& S, int n) const {
    float d[kC], k[kC], in[kC], out[kC], v[kR], u[kR] = {};
    tile.load_keys(in, (kBackwards ? shared.b : shared.a) + n * kN);
    tile.load_keys(k, shared.k + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        if constexpr (kBackwards) S[i][c] += v[i] * k[c];
        u[i] += S[i][c] * in[c];
      }
    }
    reduce_scatter<kR, TileType::kKeyLanes, 1>(u, tile.lane);
    all_gather<kR, TileType::kKeyLanes>(u, u[0], tile.lane);
    tile.load_keys(d, shared.d + n * kN);
    tile.load_keys(out, (kBackwards ? shared.a : shared.b) + n * kN);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        S[i][c] = S[i][c] * d[c] + u[i] * out[c];
        if constexpr (!kBackwards) S[i][c] += v[i] * k[c];
      }
    }
  }
};

}  // namespace rwkv
