// Which calls the kernels that go by chunks of tokens serve.
#pragma once


#include "device.cuh"
#include "head_params.h"
#include "launch_options.h"

namespace rwkv {

// Calls of fewer tokens go by chunks only where that is asked for: a scan is soon through them.
constexpr int64_t kChunksFromTokens = 65;

// Whether the chunked kernels serve a call that asks for `split` and needs `shared_bytes`.
inline bool takes_chunks(const HeadSizes& p, int64_t split, int shared_bytes) {
  const bool wanted =
      split == kSplitChunks || (split == kSplitAuto && p.time >= kChunksFromTokens);
  return wanted && p.dtype == DType::kBFloat16 && p.w_dtype == DType::kFloat &&
         p.size == ChunkTile::kN && shared_bytes <= most_shared_bytes();
}

}  // namespace rwkv
