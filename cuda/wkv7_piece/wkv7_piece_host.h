// Host side of WKV-7's pieces, the same for every device: checks the arguments, makes them
// contiguous, allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/head_host.h"
#include "wkv7_piece.h"

namespace rwkv {

struct Wkv7PieceCall {
  at::Tensor w, keys, values, a, b, base, reset;  // contiguous; undefined where absent
  at::Tensor transition, matrix;
  Wkv7Piece params;
};

inline Wkv7PieceCall wkv7_piece_call(const at::Tensor& w, const at::Tensor& keys,
                                     const at::Tensor& values, const at::Tensor& a,
                                     const at::Tensor& b, const std::optional<at::Tensor>& base,
                                     const std::optional<at::Tensor>& reset, bool backwards) {
  const HeadSizes sizes = head_sizes(keys, w, reset, 0);
  const int64_t B = sizes.batch, T = sizes.time, H = sizes.heads, N = sizes.size;
  CHECK_SHAPE(w, B, T, H, N);
  CHECK_SHAPE(values, B, T, H, N);
  CHECK_SHAPE(a, B, T, H, N);
  CHECK_SHAPE(b, B, T, H, N);
  CHECK_LIKE(values, keys);
  CHECK_LIKE(a, keys);
  CHECK_LIKE(b, keys);
  check_row(base, "base", sizes, keys);
  // The call owns what contiguous() may have copied until the kernels have run.
  Wkv7PieceCall c{w.contiguous(), keys.contiguous(), values.contiguous(), a.contiguous(),
                  b.contiguous(), contiguous_or_undefined(base), contiguous_or_undefined(reset),
                  if_wanted(!backwards, empty_state(sizes, keys)), empty_state(sizes, keys), {}};
  Wkv7Piece& p = c.params;
  static_cast<HeadSizes&>(p) = sizes;
  p.keys = c.keys.const_data_ptr(), p.values = c.values.const_data_ptr();
  p.a = c.a.const_data_ptr(), p.b = c.b.const_data_ptr();
  p.w = c.w.const_data_ptr(), p.base = data_or_null(c.base);
  p.reset = static_cast<const bool*>(data_or_null(c.reset));
  p.backwards = backwards;
  p.transition = c.transition.mutable_data_ptr(), p.matrix = c.matrix.mutable_data_ptr();
  return c;
}

}  // namespace rwkv
