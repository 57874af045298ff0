// Joins the sums over blocks of tokens that a backward pass left, among torch's threads.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "parallel.h"
#include "token_block.h"

namespace rwkv {

// The sum over the first axis of sums [blocks, ...], by the tree of ../params/token_blocks.h; the
// sums are overwritten.
inline at::Tensor sum_over_blocks(const at::Tensor& sums) {
  at::Tensor total = at::empty(sums.sizes().slice(1), sums.options());
  const int64_t blocks = sums.size(0), count = total.numel();
  const auto join = [&](auto* from, auto* to) {
    // Pieces of some cache lines: two threads never write to one line.
    constexpr int64_t kPiece = 256;
    share_tasks((count + kPiece - 1) / kPiece, blocks * kPiece, [&](int64_t begin, int64_t end) {
      join_blocks(from, blocks, count, begin * kPiece, std::min(end * kPiece, count), to);
    });
  };
  if (sums.scalar_type() == at::kDouble) {
    join(sums.mutable_data_ptr<double>(), total.mutable_data_ptr<double>());
  } else {
    join(sums.mutable_data_ptr<float>(), total.mutable_data_ptr<float>());
  }
  return total;
}

}  // namespace rwkv
