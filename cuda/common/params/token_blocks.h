// The order in which sums over tokens (gradients of parameters) are taken, the same on every device
// and for any number of threads; no torch.
//
// A block is up to kSumTokens tokens of one batch row, added one after the other (on a GPU in runs
// of 16, then the runs in order). Blocks, ordered by row and then by token, are joined pairwise as
// a binary tree, in which a missing partner is zero.
#pragma once

#include <cstdint>

namespace rwkv {

constexpr int64_t kSumTokens = 64;

constexpr int64_t sum_blocks_of_row(int64_t time) { return (time + kSumTokens - 1) / kSumTokens; }

}  // namespace rwkv
