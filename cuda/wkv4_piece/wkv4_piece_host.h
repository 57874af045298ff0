// Host side of WKV-4's pieces, the same for every device: checks the arguments, makes them
// contiguous, allocates the result and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/check.h"
#include "wkv4_piece.h"

namespace rwkv {

struct Wkv4PieceCall {
  at::Tensor w, k, v, reset;  // contiguous; undefined where absent
  at::Tensor sums;
  Wkv4Piece params;
};

inline Wkv4PieceCall wkv4_piece_call(const at::Tensor& w, const at::Tensor& k, const at::Tensor& v,
                                     const std::optional<at::Tensor>& reset) {
  TORCH_CHECK(k.dim() == 3 && k.numel() > 0, "k must be [B, T, A], no axis empty, got ", k.sizes());
  const int64_t B = k.size(0), T = k.size(1), A = k.size(2);
  CHECK_SHAPE(v, B, T, A);
  CHECK_LIKE(v, k);
  CHECK_SHAPE(w, A);
  CHECK_DTYPE(w, computing_type(k));
  if (reset.has_value()) {
    check_shape(*reset, "reset", "B, T", {B, T});
    check_dtype(*reset, "reset", at::kBool);
  }
  // The call owns what contiguous() may have copied until the kernels have run.
  Wkv4PieceCall c{w.contiguous(), k.contiguous(), v.contiguous(), contiguous_or_undefined(reset),
                  at::empty({B, 3, A}, k.options().dtype(computing_type(k))), {}};
  Wkv4Piece& p = c.params;
  static_cast<Wkv4Sizes&>(p) = {B, T, A, T, 0, dtype_of(k, "k")};
  p.w = c.w.const_data_ptr(), p.k = c.k.const_data_ptr(), p.v = c.v.const_data_ptr();
  p.reset = static_cast<const bool*>(data_or_null(c.reset));
  p.sums = c.sums.mutable_data_ptr();
  return c;
}

}  // namespace rwkv
