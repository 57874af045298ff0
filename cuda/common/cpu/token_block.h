// The tokens of one block of ../params/token_blocks.h, and the sums over them joined to one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../params/token_blocks.h"

namespace rwkv {

// Tokens [begin, end) counted over the whole batch: batch row * T + token.
struct TokenBlock {
  int64_t begin, end;

  TokenBlock(int64_t time, int64_t block) {
    const int64_t per_row = sum_blocks_of_row(time);
    const int64_t row = block / per_row, first = block % per_row * kSumTokens;
    begin = row * time + first;
    end = row * time + std::min(first + kSumTokens, time);
  }
};

// total = the rows of sums [blocks, count], elements [begin, end) of each, joined as a tree; the
// sums are overwritten.
template <typename T>
void join_blocks(T* sums, int64_t blocks, int64_t count, int64_t begin, int64_t end, T* total) {
  for (int64_t step = 1; step < blocks; step *= 2) {
    for (int64_t i = 0; i + step < blocks; i += 2 * step) {
      T* const to = sums + i * count;
      const T* const from = sums + (i + step) * count;
      for (int64_t c = begin; c < end; ++c) to[c] += from[c];
    }
  }
  std::copy(sums + begin, sums + end, total + begin);
}

}  // namespace rwkv
