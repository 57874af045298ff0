// Where documents start in a chunk of tokens, as the chunked kernels need it.
#pragma once

#include "../gpu_scan/head_place.cuh"

namespace rwkv {

constexpr int kChunkTokens = 16, kChunkWarps = 4;

// In shared memory. Tokens of different documents do not see each other; the state before the chunk
// is seen by its first document, and the state after it sees its last.
struct ChunkDocuments {
  int* number;   // [kChunkTokens]: starts in the chunk up to and including the token
  float* first;  // [kChunkTokens]: 1 in the first document, else 0
  float* last;   // [kChunkTokens]: 1 in the last document, else 0

  __host__ __device__ explicit ChunkDocuments(Pieces& pieces)
      : number(reinterpret_cast<int*>(pieces.floats(kChunkTokens))),
        first(pieces.floats(kChunkTokens)), last(pieces.floats(kChunkTokens)) {}

  // By the first of the chunk's warps; reset: as in the call, or null.
  template <class Place>
  __device__ void find(const bool* reset, const Place& place, int64_t t, int tokens) const {
    if (warp_number() % kChunkWarps != 0) return;
    const int own = lane_number();
    const bool mine = own < tokens && place.starts(reset, t + own);
    const unsigned starts = __ballot_sync(kAllLanes, mine);
    if (own >= kChunkTokens) return;
    const int before = __popc(starts & ((2u << own) - 1)), all = __popc(starts);
    number[own] = before;
    first[own] = before == 0 ? 1.0f : 0.0f;
    last[own] = before == all ? 1.0f : 0.0f;
  }
  // Whether a document starts at a token of the chunk.
  __device__ bool starts_at(int token) const {
    return number[token] != (token == 0 ? 0 : number[token - 1]);
  }
  // Whether the state after the chunk has nothing of the one before it.
  __device__ bool cut() const { return number[kChunkTokens - 1] != 0; }
};

}  // namespace rwkv
