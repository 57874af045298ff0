// The CUDA launchers of the gated head norm; no torch. They return 0, CUDA's number of an error, or
// kUnsupported: they serve fp32, fp16 and bf16 and heads of 32, 64, 128 and 256 channels. Tensors
// start at multiples of 16 bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "head_norm_gate.h"

namespace rwkv {

// Blocks of tokens whose sums one block of threads joins.
constexpr int64_t kHeadNormJoinedBlocks = 4;

}  // namespace rwkv

extern "C" {
int rwkv_head_norm_gate_forward_cuda(const rwkv::HeadNormForward& params, void* stream);
// params.sums: [ceil(blocks of tokens / kHeadNormJoinedBlocks), 2, D], working memory; their sum
// goes to params.total.
int rwkv_head_norm_gate_backward_cuda(const rwkv::HeadNormBackward& params, void* stream);
}
