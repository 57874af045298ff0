// Where the rows of one head lie, and the fetching of its tokens into shared memory; RWKV-5, 6, 7.
#pragma once

#include "../gpu/copy_async.cuh"
#include "../gpu/vec8.cuh"
#include "../params/head_params.h"
#include "state_tile.cuh"

namespace rwkv {

// One slice of one head of one batch row.
template <class TileType> struct HeadPlace {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows;

  int64_t task;  // batch row * H + head
  int slice;
  int64_t row, head, time, heads;

  // block: a block number, slices of a head next to each other
  __device__ HeadPlace(const HeadSizes& p, int64_t block)
      : task(block / TileType::kSlices), slice(static_cast<int>(block % TileType::kSlices)),
        row(task / p.heads), head(task % p.heads), time(p.time), heads(p.heads) {}

  // Index of a token in tensors [B, T, H], and of its first element in [B, T, H, N].
  __device__ int64_t number(int64_t t) const { return (row * time + t) * heads + head; }
  __device__ int64_t token(int64_t t) const { return number(t) * kN; }
  __device__ int64_t stride() const { return heads * kN; }
  // Index of this slice's first element in states [.., N, N], of which there are `each` per head.
  __device__ int64_t state(int64_t each = 1, int64_t number = 0) const {
    return ((task * each + number) * kN + slice * kRows) * kN;
  }
  __device__ bool starts(const bool* reset, int64_t t) const {
    return reset != nullptr && reset[row * time + t];
  }

  // Whole rows of `tokens` tokens from token t on, N elements each.
  __device__ void fetch_keys(unsigned char* to, const void* from, DType dtype, int64_t t,
                             int tokens) const {
    copy_rows_async<kN, TileType::kThreads>(to, at(from, dtype, token(t)), tokens, stride(),
                                            element_bytes(dtype));
  }
  // The slice's part of the rows, kRows elements each.
  __device__ void fetch_values(unsigned char* to, const void* from, DType dtype, int64_t t,
                               int tokens) const {
    copy_rows_async<kRows, TileType::kThreads>(to, at(from, dtype, token(t) + slice * kRows),
                                               tokens, stride(), element_bytes(dtype));
  }

 private:
  __device__ static const void* at(const void* base, DType dtype, int64_t index) {
    return static_cast<const unsigned char*>(base) + index * element_bytes(dtype);
  }
};

// A range of tokens; the backward pass may be run over one after another, the last first.
struct TokenRange {
  int64_t begin, end;

  // Tokens of a chunk that begins at token t; the last one may be short.
  template <int kChunk> __device__ int tokens_from(int64_t t) const {
    return end - t < kChunk ? static_cast<int>(end - t) : kChunk;
  }
};

// States before every kept-th token: [B, H, count, N, N], number 0 at token `first`.
template <typename Pointer> struct StatesAt {
  Pointer base;  // null for none
  int64_t every, count, first;

  __host__ __device__ bool has(int64_t t) const {
    return base != nullptr && (t - first) % every == 0;
  }
  template <class Place> __device__ Pointer of(const Place& place, int64_t t) const {
    return base + place.state(count, (t - first) / every);
  }
};

// Eight fp32 numbers of w from `at` on, each with the base that it has by its key, from `key` on.
template <class Params>
__device__ inline Vec8 based_w(const Params& p, const void* w, int64_t at, int64_t key) {
  Vec8 sum = load_vec8(w, at, DType::kFloat);
  if (p.base != nullptr) add_vec8(sum, load_vec8(p.base, key, DType::kFloat));
  return sum;
}

// Where vector number `number` of some rows lies. Vectors of a row belong to neighbouring lanes.
template <int kRowElements> struct Vec8Place {
  static constexpr int kPerRow = kRowElements / kVec8;
  int token, at;
  __device__ explicit Vec8Place(int number)
      : token(number / kPerRow), at(number % kPerRow * kVec8) {}
};

// The smallest multiple of kThreads from kCount on: a loop over n < it takes every lane along as
// often, as sums over lanes need it.
template <int kCount, int kThreads>
constexpr int kWholeRounds = (kCount + kThreads - 1) / kThreads * kThreads;

}  // namespace rwkv
