// The order in which gradients of parameters are summed over tokens: blocks of tokens of one batch
// row, inside a block one token after the other, then block and block as a binary tree in the order
// (row, block). It depends on B and T alone: same bits for any number of threads or any card.
#pragma once

#include <cstdint>

namespace rwkv {

constexpr int64_t kBlockTokens = 64;

constexpr int64_t blocks_per_row(int64_t time) { return (time + kBlockTokens - 1) / kBlockTokens; }

// A block of threads of a CUDA kernel joins so many blocks of tokens before it writes their sums.
constexpr int kBlocksJoined = 4;

constexpr int64_t parts_of(int64_t blocks) { return (blocks + kBlocksJoined - 1) / kBlocksJoined; }

}  // namespace rwkv
