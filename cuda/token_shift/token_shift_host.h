// Host side of the token shift, the same for every device: checks the arguments, makes them
// contiguous, allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <vector>

#include "../common/torch/check.h"
#include "token_shift.h"

namespace rwkv {

// The arguments that both passes share: contiguous; undefined where absent.
struct TokenShiftInputs {
  at::Tensor x, mixes, last, moves, reset;
};

struct TokenShiftForwardCall {
  TokenShiftInputs inputs;
  std::vector<at::Tensor> y;
  TokenShiftForward params;
};

struct TokenShiftBackwardCall {
  TokenShiftInputs inputs;
  std::vector<at::Tensor> gy;
  at::Tensor gx, gmixes, glast, gmoves;  // gmixes per task
  TokenShiftBackward params;
};

// tokens: of a task
inline int64_t token_shift_tasks(const TokenShiftSizes& p, int64_t tokens) {
  return p.batch * ((p.time + tokens - 1) / tokens);
}

inline TokenShiftInputs token_shift_inputs(const at::Tensor& x, const at::Tensor& mixes,
                                           const std::optional<at::Tensor>& last,
                                           const std::optional<at::Tensor>& moves,
                                           const std::optional<at::Tensor>& reset) {
  TORCH_CHECK(x.dim() == 3 && x.numel() > 0, "x must be [B, T, C], no axis empty, got ", x.sizes());
  const int64_t B = x.size(0), T = x.size(1), C = x.size(2);
  TORCH_CHECK(mixes.dim() == 2 && mixes.size(0) >= 1 && mixes.size(0) <= kMostMixes,
              "mixes must be [n, C] with n from 1 to ", kMostMixes, ", got ", mixes.sizes());
  const int64_t n = mixes.size(0);
  CHECK_SHAPE(mixes, n, C);
  CHECK_DTYPE(mixes, computing_type(x));
  if (last.has_value()) {
    check_shape(*last, "last", "B, C", {B, C});
    check_like(*last, "last", x, "x");
  }
  if (moves.has_value()) {
    check_shape(*moves, "moves", "n, B, T, C", {n, B, T, C});
    TORCH_CHECK(computing_type(*moves) == computing_type(x),
                "moves and x must both be float64 or neither, got ", moves->scalar_type(), " and ",
                x.scalar_type());
  }
  if (reset.has_value()) {
    check_shape(*reset, "reset", "B, T", {B, T});
    check_dtype(*reset, "reset", at::kBool);
  }
  return {x.contiguous(), mixes.contiguous(), contiguous_or_undefined(last),
          contiguous_or_undefined(moves), contiguous_or_undefined(reset)};
}

// Sizes and inputs; y: a tensor of the type of the results.
template <typename Params>
void fill_token_shift(Params& p, const TokenShiftInputs& inputs, const at::Tensor& y) {
  const at::Tensor& x = inputs.x;
  TORCH_CHECK(computing_type(y) == computing_type(x),
              "x and the results must both be float64 or neither, got ", x.scalar_type(), " and ",
              y.scalar_type());
  p.batch = x.size(0), p.time = x.size(1), p.width = x.size(2), p.count = inputs.mixes.size(0);
  p.dtype = dtype_of(x, "x"), p.y_dtype = dtype_of(y, "y");
  p.moves_dtype = inputs.moves.defined() ? dtype_of(inputs.moves, "moves") : p.dtype;
  p.x = x.const_data_ptr(), p.mixes = inputs.mixes.const_data_ptr();
  p.last = data_or_null(inputs.last), p.moves = data_or_null(inputs.moves);
  p.reset = static_cast<const bool*>(data_or_null(inputs.reset));
}

inline TokenShiftForwardCall token_shift_forward_call(const at::Tensor& x, const at::Tensor& mixes,
                                                      const std::optional<at::Tensor>& last,
                                                      const std::optional<at::Tensor>& moves,
                                                      const std::optional<at::Tensor>& reset,
                                                      at::ScalarType dtype) {
  TokenShiftForwardCall c{token_shift_inputs(x, mixes, last, moves, reset), {}, {}};
  for (int64_t i = 0; i < mixes.size(0); ++i) {
    c.y.push_back(at::empty(x.sizes(), x.options().dtype(dtype)));
    c.params.y[i] = c.y.back().mutable_data_ptr();
  }
  fill_token_shift(c.params, c.inputs, c.y[0]);
  return c;
}

// tokens: of a task
inline TokenShiftBackwardCall token_shift_backward_call(
    at::TensorList gy, const at::Tensor& x, const at::Tensor& mixes,
    const std::optional<at::Tensor>& last, const std::optional<at::Tensor>& moves,
    const std::optional<at::Tensor>& reset, int64_t tokens) {
  TokenShiftBackwardCall c{
      token_shift_inputs(x, mixes, last, moves, reset), {}, {}, {}, {}, {}, {}};
  const int64_t n = mixes.size(0), B = x.size(0), T = x.size(1), C = x.size(2);
  TORCH_CHECK(static_cast<int64_t>(gy.size()) == n, "gy must be ", n, " tensors, got ", gy.size());
  for (int64_t i = 0; i < n; ++i) {
    check_shape(gy[i], "gy", "B, T, C", {B, T, C});
    check_like(gy[i], "gy", gy[0], "the first of gy");
    c.gy.push_back(gy[i].contiguous());
    c.params.gy[i] = c.gy.back().const_data_ptr();
  }
  TokenShiftBackward& p = c.params;
  fill_token_shift(p, c.inputs, c.gy[0]);
  c.gx = at::empty(x.sizes(), x.options());
  c.gmixes = at::empty({token_shift_tasks(p, tokens), n, C}, mixes.options());
  c.glast = at::empty({B, C}, x.options());
  c.gmoves = moves.has_value() ? at::empty(moves->sizes(), moves->options())
                               : at::empty({0}, x.options());
  p.gx = c.gx.mutable_data_ptr(), p.gmixes = c.gmixes.mutable_data_ptr();
  p.glast = c.glast.mutable_data_ptr();
  p.gmoves = moves.has_value() ? c.gmoves.mutable_data_ptr() : nullptr;
  return c;
}

}  // namespace rwkv
