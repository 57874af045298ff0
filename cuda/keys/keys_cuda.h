// The CUDA launchers of RWKV-7's keys; no torch. They return 0, CUDA's number of an error, or
// kUnsupported for fp64 and head sizes other than 32, 64, 128 and 256. Tensors start at multiples
// of 16 bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "keys.h"

namespace rwkv {

// Blocks of tokens whose sums one block of threads joins.
constexpr int64_t kKeysJoinedBlocks = 4;

}  // namespace rwkv

extern "C" {
int rwkv_keys_forward_cuda(const rwkv::KeysForward& params, void* stream);
// params.sums: [ceil(blocks of tokens / kKeysJoinedBlocks), 3, H, N], working memory; their sum goes
// to params.total.
int rwkv_keys_backward_cuda(const rwkv::KeysBackward& params, void* stream);
}
