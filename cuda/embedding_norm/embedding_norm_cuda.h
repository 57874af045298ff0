// The CUDA launchers of the embedding with its norm; no torch. They return 0, CUDA's number of an
// error, or kUnsupported for fp64 and for rows that do not fit shared memory. Where the width is a
// multiple of 8, tensors start at multiples of 16 bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "embedding_norm.h"

namespace rwkv::embedding_norm {

// Places in the sorted order of one task: the ids that begin in there are a warp's.
constexpr int64_t kPlaces = 16;

// What a launch needs besides the parameters. Sorted places are those of `order`.
struct CudaBackward : EmbeddingNormBackward {
  const int32_t* sorted;  // [n]: the ids at the sorted places
  float* blocks;          // [2 ceil(n / kOccurrences), C]: sums of blocks of frequent ids
};

}  // namespace rwkv::embedding_norm

extern "C" {
int rwkv_embedding_norm_forward_cuda(const rwkv::EmbeddingNormForward& params, void* stream);
// params.sums: [ceil(n / kPlaces), 2, C]
int rwkv_embedding_norm_backward_cuda(const rwkv::embedding_norm::CudaBackward& params,
                                      void* stream);
}
