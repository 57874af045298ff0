// Joins the sums of blocks of tokens, in the order of ../params/token_blocks.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "../params/token_blocks.h"
#include "parallel.h"

namespace rwkv {

// parts: [blocks, columns]. The sums of the columns [begin, end) end up in the first row.
template <typename T>
void join_token_blocks(T* parts, int64_t blocks, int64_t columns, int64_t begin, int64_t end) {
  for (int64_t step = 1; step < blocks; step *= 2) {
    for (int64_t i = 0; i + step < blocks; i += 2 * step) {
      T* const to = parts + i * columns;
      const T* const from = parts + (i + step) * columns;
      for (int64_t c = begin; c < end; ++c) to[c] += from[c];
    }
  }
}

// The sum over the first axis, in memory of its own; overwrites parts.
inline at::Tensor sum_token_blocks(const at::Tensor& parts) {
  constexpr int64_t kPiece = 256;
  const int64_t blocks = parts.size(0), columns = parts.numel() / blocks;
  share_tasks((columns + kPiece - 1) / kPiece, blocks * kPiece, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * kPiece, to = std::min(end * kPiece, columns);
    if (parts.scalar_type() == at::kDouble) {
      join_token_blocks(parts.mutable_data_ptr<double>(), blocks, columns, from, to);
    } else {
      join_token_blocks(parts.mutable_data_ptr<float>(), blocks, columns, from, to);
    }
  });
  return blocks == 1 ? parts[0] : parts[0].clone();
}

}  // namespace rwkv
