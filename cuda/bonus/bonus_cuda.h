// The CUDA launchers of the bonus's weight; no torch. They return 0, CUDA's number of an error, or
// kUnsupported for fp64 and head sizes other than 32, 64, 128 and 256. Tensors of [B, T, H, N] and
// the weight start at multiples of 16 bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "bonus.h"

namespace rwkv {

// Blocks of tokens whose sums one block of threads joins.
constexpr int64_t kBonusJoinedBlocks = 4;

}  // namespace rwkv

extern "C" {
int rwkv_bonus_forward_cuda(const rwkv::BonusForward& params, void* stream);
// params.sums: [ceil(blocks of tokens / kBonusJoinedBlocks), H, N], working memory; their sum goes
// to params.total.
int rwkv_bonus_backward_cuda(const rwkv::BonusBackward& params, void* stream);
}
