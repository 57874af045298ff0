// Shared memory of the backward pass of RWKV-7 as a scan; names: wkv7_backward.cuh.
#pragma once

#include "../common/gpu_scan/backward_scan.cuh"
#include "wkv7.h"

namespace rwkv {

enum Wkv7Sum { kWkv7SumR, kWkv7SumK, kWkv7SumA, kWkv7SumB, kWkv7SumW, kWkv7Sums };

template <class TileType> struct Wkv7BackwardShared : BurstShared<TileType, kWkv7Sums> {
  using Base = BurstShared<TileType, kWkv7Sums>;
  using Base::gv, Base::kParked, Base::parked, Base::sums;
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kChunk = TileType::kChunk;

  float *r, *k, *a, *b, *d, *slope;  // [kChunk][kN]; slope: of the decay by w
  float *v, *gy, *u;                 // [kChunk][kRows]
  float *gbase, *gbonus;             // [kBurst][kN]: over the tokens met so far
  unsigned char *raw_r, *raw_k, *raw_a, *raw_b, *raw_v, *raw_gy, *raw_w;
  int bytes;

  __host__ __device__ Wkv7BackwardShared(unsigned char* base, DType dtype) {
    Pieces pieces(base);
    for (float** keys : {&r, &k, &a, &b, &d, &slope}) *keys = pieces.floats(kChunk * kN);
    for (float** values : {&v, &gy, &u}) *values = pieces.floats(kChunk * kRows);
    sums = pieces.floats(kBurst * TileType::kWarps * kWkv7Sums * kN);
    gv = pieces.floats(kBurst * kRows);
    for (float** totals : {&gbase, &gbonus}) *totals = pieces.floats(kBurst * kN);
    parked = pieces.floats(kParked * kRows * kN);
    const int width = element_bytes(dtype);
    for (unsigned char** raw : {&raw_r, &raw_k, &raw_a, &raw_b}) {
      *raw = pieces.bytes(kChunk * kN * width);
    }
    for (unsigned char** raw : {&raw_v, &raw_gy}) *raw = pieces.bytes(kChunk * kRows * width);
    raw_w = pieces.bytes(kChunk * kN * 4);
    bytes = pieces.used();
  }
};

}  // namespace rwkv
