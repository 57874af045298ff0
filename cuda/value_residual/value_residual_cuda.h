// The CUDA launchers of the value residual; no torch. They return 0, CUDA's number of an error, or
// kUnsupported for fp64 and widths that are no multiples of 8. Tensors start at multiples of 16
// bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "value_residual.h"

namespace rwkv {

// Blocks of tokens whose sums one block of threads joins.
constexpr int64_t kResidualJoinedBlocks = 4;

}  // namespace rwkv

extern "C" {
int rwkv_value_residual_forward_cuda(const rwkv::ValueResidualForward& params, void* stream);
// params.sums: [ceil(blocks of tokens / kResidualJoinedBlocks), D], working memory; their sum goes
// to params.total.
int rwkv_value_residual_backward_cuda(const rwkv::ValueResidualBackward& params, void* stream);
}
