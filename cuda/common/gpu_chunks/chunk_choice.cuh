// Which calls the kernels that go by chunks of tokens serve.
#pragma once

#include "../gpu/device.cuh"
#include "../params/head_params.h"
#include "../params/launch_options.h"
#include "chunk_tile.cuh"

namespace rwkv {

// Calls of fewer tokens go by chunks only where that is asked for: a scan takes few steps for them.
constexpr int64_t kChunksFromTokens = 65;

// Whether no other kernels may serve a call that asks for `split`.
inline bool by_chunks_alone(int64_t split) {
  return split == kSplitChunks || split == kSplitSegments;
}

// A card that is not filled by a block for each head takes segments of the time axis side by side.
// By arithmetic the two passes that this needs pay forwards up to half a block for each
// multiprocessor, and backwards up to one.
enum class Direction { kForward, kBackward };
constexpr int64_t kSegmentsFromTokens = 256;

inline bool pays_in_segments(const HeadSizes& p, Direction direction) {
  const int64_t blocks = p.batch * p.heads * (direction == Direction::kForward ? 2 : 1);
  return p.time >= kSegmentsFromTokens && blocks <= multiprocessors();
}

// How the kernels by chunks serve a call, if they need so much shared memory: kSplitChunks,
// kSplitSegments, or kUnsupported.
inline int64_t split_in_chunks(const HeadSizes& p, const LaunchOptions& options,
                               Direction direction, int chunk_bytes, int chain_bytes) {
  const int64_t split = options.split;
  const bool is_auto = split == kSplitAuto;
  const bool wanted = by_chunks_alone(split) || (is_auto && p.time >= kChunksFromTokens);
  const bool has_gw = p.gw_dtype == DType::kFloat || p.gw_dtype == DType::kBFloat16;
  const bool possible = p.dtype == DType::kBFloat16 && p.w_dtype == DType::kFloat && has_gw &&
                        p.size == ChunkTile::kN && chunk_bytes <= most_shared_bytes();
  if (!wanted || !possible) return kUnsupported;
  const bool fits = chain_bytes <= most_shared_bytes();
  if (split == kSplitSegments) return fits ? kSplitSegments : kUnsupported;
  return is_auto && fits && pays_in_segments(p, direction) ? kSplitSegments : kSplitChunks;
}

}  // namespace rwkv
