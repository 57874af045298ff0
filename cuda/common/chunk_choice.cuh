// Which calls the kernels that go by chunks of tokens serve.
#pragma once

#include "chunk_tile.cuh"
#include "head_params.h"
#include "launch_options.h"

namespace rwkv {

// Calls of fewer tokens go by chunks only where that is asked for. A scan is soon through them, and
// their gradients are sums of few terms, in which the roundings to tf32 do not average out.
constexpr int64_t kChunksFromTokens = 65;

// Whether the chunked kernels serve a call that asks for `split` and needs `shared_bytes`. Of their
// own accord they take bf16 alone: tf32 has as many digits as fp16, whose results would be two to
// three times as far off as one rounding brings them.
inline bool takes_chunks(const HeadSizes& p, int64_t split, int shared_bytes) {
  const bool wanted = split == kSplitChunks ||
                      (split == kSplitAuto && p.dtype == DType::kBFloat16 &&
                       p.time >= kChunksFromTokens);
  const bool possible = p.dtype == DType::kBFloat16 || p.dtype == DType::kHalf;
  return wanted && possible && p.w_dtype == DType::kFloat && p.size == ChunkTile::kN &&
         shared_bytes <= most_shared_bytes();
}

}  // namespace rwkv
