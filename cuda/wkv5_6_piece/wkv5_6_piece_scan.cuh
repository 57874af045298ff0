// RWKV-5's and 6's pieces as a scan over tokens. Per head, S indexed [value j][key i], in either
// direction, keys and values being k and v or r and gy:
//
//   S[j][i] <- d[i] S[j][i] + k[i] v[j]
//
// At a document start d is staged as zero and, backwards, the key with it: the initial state is not
// read from there on.
#pragma once

#include "../common/gpu_scan/piece_scan.cuh"
#include "../wkv5_6/wkv5_6_decay.cuh"
#include "wkv5_6_piece.h"

namespace rwkv {

// A chunk of tokens in shared memory: as fetched, and widened to fp32 for the scan.
template <class TileType> struct Wkv5_6PieceShared {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kChunk = TileType::kChunk;

  float *k, *d;  // [kChunk][kN]
  float* v;      // [kChunk][kRows]
  unsigned char *raw_k, *raw_v, *raw_w;
  int bytes;

  __host__ __device__ Wkv5_6PieceShared(unsigned char* base, DType dtype) {
    Pieces pieces(base);
    for (float** keys : {&k, &d}) *keys = pieces.floats(kChunk * kN);
    v = pieces.floats(kChunk * kRows);
    raw_k = pieces.bytes(kChunk * kN * element_bytes(dtype));
    raw_v = pieces.bytes(kChunk * kRows * element_bytes(dtype));
    raw_w = pieces.bytes(kChunk * kN * 4);
    bytes = pieces.used();
  }
};

template <class TileType, bool kDecayPerToken> struct Wkv5_6PieceBlock
    : PieceScanBlock<Wkv5_6Piece, TileType, Wkv5_6PieceShared<TileType>> {
  using Base = PieceScanBlock<Wkv5_6Piece, TileType, Wkv5_6PieceShared<TileType>>;
  using Base::Base, Base::p, Base::place, Base::shared, Base::tile;
  using Base::kC, Base::kN, Base::kR, Base::kRows, Base::kThreads;
  using typename Base::State;
  static constexpr bool kHasTransition = false;

  __device__ void fetch(int64_t t, int tokens) const {
    place.fetch_keys(shared.raw_k, p.keys, p.dtype, t, tokens);
    if constexpr (kDecayPerToken) place.fetch_keys(shared.raw_w, p.w, DType::kFloat, t, tokens);
    Base::fetch_values(t, tokens);
    commit_copies();
  }

  __device__ void widen(int64_t t, int tokens) const {
    for (int n = static_cast<int>(threadIdx.x); n < tokens * kN / kVec8; n += kThreads) {
      const int at = n * kVec8;
      const Vec8Place<kN> vec(n);
      const int64_t key = place.head * kN + vec.at;
      const bool starts = place.starts(p.reset, t + vec.token);
      const Vec8 zero = Vec8::of(0.0f);
      const Vec8 w = kDecayPerToken ? based_w(p, shared.raw_w, at, key)
                                    : load_vec8(p.w, key, DType::kFloat);
      store_floats(shared.d + at, starts ? zero : wkv5_6_decay(w).decay);
      const Vec8 k = load_vec8(shared.raw_k, at, p.dtype);
      store_floats(shared.k + at, starts && p.backwards ? zero : k);
    }
    Base::widen_values(tokens);
  }

  // Token n of the chunk.
  __device__ __forceinline__ void step(State& S, int n) const {
    float k[kC], d[kC], v[kR];
    tile.load_keys(k, shared.k + n * kN);
    tile.load_keys(d, shared.d + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) S[i][c] = d[c] * S[i][c] + k[c] * v[i];
    }
  }
};

}  // namespace rwkv
