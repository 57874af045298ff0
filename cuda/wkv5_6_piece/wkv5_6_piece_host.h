// Host side of RWKV-5's and 6's pieces, the same for every device: checks the arguments, makes them
// contiguous, allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/head_host.h"
#include "wkv5_6_piece.h"

namespace rwkv {

struct Wkv5_6PieceCall {
  at::Tensor keys, values, w, base, reset;  // contiguous; undefined where absent
  at::Tensor decay, matrix;
  Wkv5_6Piece params;
};

inline Wkv5_6PieceCall wkv5_6_piece_call(const at::Tensor& keys, const at::Tensor& values,
                                         const at::Tensor& w, const std::optional<at::Tensor>& base,
                                         const std::optional<at::Tensor>& reset, bool backwards) {
  const HeadSizes sizes = head_sizes(keys, w, reset, 0);
  const int64_t B = sizes.batch, T = sizes.time, H = sizes.heads, N = sizes.size;
  CHECK_SHAPE(values, B, T, H, N);
  CHECK_LIKE(values, keys);
  const bool decay_per_token = w.dim() == 4;
  if (decay_per_token) CHECK_SHAPE(w, B, T, H, N);
  else CHECK_SHAPE(w, H, N);
  TORCH_CHECK(decay_per_token || !base.has_value(), "one decay a channel has no base besides w");
  check_row(base, "base", sizes, keys);
  // The call owns what contiguous() may have copied until the kernels have run.
  Wkv5_6PieceCall c{keys.contiguous(),           values.contiguous(),
                    w.contiguous(),              contiguous_or_undefined(base),
                    contiguous_or_undefined(reset), empty_rows(sizes, keys),
                    empty_state(sizes, keys),    {}};
  Wkv5_6Piece& p = c.params;
  static_cast<HeadSizes&>(p) = sizes;
  p.keys = c.keys.const_data_ptr(), p.values = c.values.const_data_ptr();
  p.w = c.w.const_data_ptr(), p.base = data_or_null(c.base);
  p.reset = static_cast<const bool*>(data_or_null(c.reset));
  p.decay_per_token = decay_per_token, p.backwards = backwards;
  p.decay = c.decay.mutable_data_ptr(), p.matrix = c.matrix.mutable_data_ptr();
  return c;
}

}  // namespace rwkv
