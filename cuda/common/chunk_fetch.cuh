// How the kernels that go by chunks fetch a chunk's rows and a head's state into shared memory.
#pragma once

#include "chunk_tile.cuh"

namespace rwkv {

// Fetches a chunk's rows of 64 elements by cp.async. A thread copies the same 16 bytes of every
// tensor's rows, so that their place is found once. kApart: as PairOfKeys reads them.
class ChunkFetch {
 public:
  template <class Place>
  __device__ ChunkFetch(const Place& place, int64_t t, int tokens)
      : tokens_(tokens), from_(place.token(t)), stride_(place.stride()) {}

  // Elements of kBytes.
  template <int kBytes, bool kApart>
  __device__ __forceinline__ void copy(unsigned char* to, const void* from) const {
    constexpr int kPerRow = ChunkTile::kN * kBytes / 16;
    constexpr int kRows = ChunkTile::kThreads / kPerRow;
    const int first = static_cast<int>(threadIdx.x) / kPerRow;
    const int piece = static_cast<int>(threadIdx.x) % kPerRow;
    const auto* const source = static_cast<const unsigned char*>(from) +
                               (from_ + first * stride_) * kBytes + piece * 16;
#pragma unroll
    for (int row = 0; row < ChunkTile::kChunk; row += kRows) {
      const int token = first + row, other = token / PairOfKeys::kTokens * kBytes;
      unsigned char* const place = to + (token * kPerRow + (kApart ? piece ^ other : piece)) * 16;
      if (token < tokens_) copy_16_async(place, source + row * stride_ * kBytes);
    }
  }

 private:
  const int tokens_;
  const int64_t from_, stride_;
};

// Fetches the state of a head by cp.async.
template <class To> __device__ void fetch_state(const To& to, const float* from) {
  constexpr int kN = ChunkTile::kN, kPerRow = kN / 4, kRows = ChunkTile::kThreads / kPerRow;
  const int row = static_cast<int>(threadIdx.x) / kPerRow;
  const int column = static_cast<int>(threadIdx.x) % kPerRow * 4;
#pragma unroll
  for (int n = 0; n < kN; n += kRows) {
    copy_16_async(to.at(row + n, column), from + (row + n) * kN + column);
  }
}

}  // namespace rwkv
