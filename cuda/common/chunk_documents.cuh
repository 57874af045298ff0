// Where documents start in a chunk of tokens, as the chunked kernels need it.
#pragma once

#include "head_place.cuh"

namespace rwkv {

constexpr int kChunkTokens = 16;

// In shared memory. Tokens of different documents do not see each other; the state before the chunk
// is seen by its first document, and the state after it sees its last.
struct ChunkDocuments {
  int* number;   // [kChunkTokens]: starts in the chunk up to and including the token
  float* first;  // [kChunkTokens]: 1 in the first document, else 0
  float* last;   // [kChunkTokens]: 1 in the last document, else 0

  __host__ __device__ explicit ChunkDocuments(Pieces& pieces)
      : number(reinterpret_cast<int*>(pieces.floats(kChunkTokens))),
        first(pieces.floats(kChunkTokens)), last(pieces.floats(kChunkTokens)) {}

  // By the block's first threads; reset: as in the call, or null.
  template <class Place>
  __device__ void find(const bool* reset, const Place& place, int64_t t, int tokens) const {
    const int own = static_cast<int>(threadIdx.x);
    if (own >= kChunkTokens) return;
    int before = 0, all = 0;
    for (int n = 0; n < tokens; ++n) {
      const int start = place.starts(reset, t + n) ? 1 : 0;
      all += start;
      if (n <= own) before += start;
    }
    number[own] = before;
    first[own] = before == 0 ? 1.0f : 0.0f;
    last[own] = before == all ? 1.0f : 0.0f;
  }
  // Whether the state after the chunk has nothing of the one before it.
  __device__ bool cut() const { return number[kChunkTokens - 1] != 0; }
};

}  // namespace rwkv
