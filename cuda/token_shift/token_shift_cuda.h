// The CUDA launchers of the token shift; no torch. They return 0, CUDA's number of an error, or
// kUnsupported for fp64. Any width below 2^31; where it is a multiple of 8, tensors start at
// multiples of 16 bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "token_shift.h"

namespace rwkv {

// Tokens of one block, and of one of its warps. As on the CPU, the sums over tokens are taken
// inside a task, which is a block's tokens, and then over tasks: more tokens would mean fewer sums
// to write, fewer tokens more blocks. 8 x 4096 tokens of width 768 are 1536 blocks, four times what
// 132 multiprocessors hold.
constexpr int64_t kShiftTokens = 64, kShiftWarpTokens = 16;

}  // namespace rwkv

extern "C" {
int rwkv_token_shift_forward_cuda(const rwkv::TokenShiftForward& params, void* stream);
// params.gmixes: [B * ceil(T / kShiftTokens), n, C]; the caller sums over the tasks.
int rwkv_token_shift_backward_cuda(const rwkv::TokenShiftBackward& params, void* stream);
}
