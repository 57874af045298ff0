// How the kernels that go by chunks fetch a chunk's rows and a head's state into shared memory.
#pragma once

#include "chunk_tile.cuh"

namespace rwkv {

// Fetches a chunk's rows of 64 elements by cp.async. A thread copies the same 16 bytes of every
// tensor's rows, so that their place is found once.
class ChunkFetch {
 public:
  template <class Place> __device__ ChunkFetch(const Place& place, int64_t t, int tokens)
      : tokens_(tokens), from_(place.token(t)), stride_(place.stride()) {}

  // Rows of bf16; tokens beyond the end become zeros.
  __device__ __forceinline__ void copy(const ChunkTile::ExactRows& to, const void* from) const {
    constexpr int kPerRow = ChunkTile::kN / 8;
    const int token = ChunkTile::thread() / kPerRow;
    const int column = ChunkTile::thread() % kPerRow * 8;
    const bool present = token < tokens_;
    const auto* const source =
        static_cast<const uint16_t*>(from) + from_ + (present ? token : 0) * stride_ + column;
    copy_16_or_zeros_async(to.at(token, column), source, present);
  }
  // Rows of fp32; tokens beyond the end are skipped.
  __device__ __forceinline__ void copy(float* to, const void* from) const {
    constexpr int kPerRow = ChunkTile::kN / 4, kRows = ChunkTile::kThreads / kPerRow;
    const int first = ChunkTile::thread() / kPerRow;
    const int column = ChunkTile::thread() % kPerRow * 4;
    const auto* const source = static_cast<const float*>(from) + from_ + first * stride_ + column;
#pragma unroll
    for (int row = 0; row < ChunkTile::kChunk; row += kRows) {
      if (first + row >= tokens_) continue;
      copy_16_async(to + (first + row) * ChunkTile::kFloatStride + column, source + row * stride_);
    }
  }

 private:
  const int tokens_;
  const int64_t from_, stride_;
};

// Fetches a state as ChunkTile::store_split_state has left it.
__device__ inline void fetch_split_state(const ChunkTile::HeadState& to, const float* from) {
  constexpr int kN = ChunkTile::kN, kPieces = kN * kN / 8, kThreads = ChunkTile::kThreads;
  static_assert(kPieces % kThreads == 0 && kThreads % kN == 0);
  const auto* const source = reinterpret_cast<const uint16_t*>(from);
  const int own = ChunkTile::thread();
  // A row of matrices has kN pieces, a matrix eight.
  const int row = own / kN * 8 + own % 8, column = own % kN / 8 * 8;
#pragma unroll
  for (int n = 0; n < kPieces / kThreads; ++n) {
    const int at = (n * kThreads + own) * 8, to_row = row + n * (kThreads / kN) * 8;
    copy_16_async(to.heads().at(to_row, column), source + at);
    copy_16_async(to.tails().at(to_row, column), source + kN * kN + at);
  }
}

}  // namespace rwkv
