// Host side of the gated head norm, the same for every device: checks the arguments, makes them
// contiguous, allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/check.h"
#include "head_norm_gate.h"

namespace rwkv {

// Contiguous; undefined where absent.
struct HeadNormInputs {
  at::Tensor y, g, weight, bias, v, s;
  double eps;
  bool silu;
};

struct HeadNormForwardCall {
  HeadNormInputs inputs;
  at::Tensor o;
  HeadNormForward params;
};

struct HeadNormBackwardCall {
  HeadNormInputs inputs;
  at::Tensor go, gy, gg, gv, gs, sums;
  HeadNormBackward params;
};

inline HeadNormInputs head_norm_inputs(const at::Tensor& y, const at::Tensor& g,
                                       const at::Tensor& weight, const at::Tensor& bias,
                                       const std::optional<at::Tensor>& v,
                                       const std::optional<at::Tensor>& s, double eps, bool silu) {
  TORCH_CHECK(y.dim() == 4 && y.numel() > 0, "y must be [B, T, H, N], no axis empty, got ",
              y.sizes());
  const int64_t B = y.size(0), T = y.size(1), H = y.size(2), N = y.size(3);
  check_shape(g, "g", "B, T, D", {B, T, H * N});
  CHECK_LIKE(g, y);
  for (const auto& [x, name] : {std::pair{weight, "weight"}, std::pair{bias, "bias"}}) {
    check_shape(x, name, "D", {H * N});
    check_dtype(x, name, computing_type(y));
  }
  TORCH_CHECK(v.has_value() == s.has_value(), "v and s must be given both or neither");
  if (v.has_value()) {
    check_shape(*v, "v", "B, T, H, N", {B, T, H, N});
    check_like(*v, "v", y, "y");
    check_shape(*s, "s", "B, T, H", {B, T, H});
    check_dtype(*s, "s", computing_type(y));
  }
  return {y.contiguous(),    g.contiguous(),
          weight.contiguous(), bias.contiguous(),
          contiguous_or_undefined(v), contiguous_or_undefined(s), eps, silu};
}

template <typename Params> void fill_head_norm(Params& p, const HeadNormInputs& inputs) {
  const at::Tensor& y = inputs.y;
  p.batch = y.size(0), p.time = y.size(1), p.heads = y.size(2), p.size = y.size(3);
  p.dtype = dtype_of(y, "y"), p.silu = inputs.silu, p.eps = inputs.eps;
  p.y = y.const_data_ptr(), p.g = inputs.g.const_data_ptr();
  p.weight = inputs.weight.const_data_ptr(), p.bias = inputs.bias.const_data_ptr();
  p.v = data_or_null(inputs.v), p.s = data_or_null(inputs.s);
}

inline HeadNormForwardCall head_norm_forward_call(HeadNormInputs inputs) {
  HeadNormForwardCall c{std::move(inputs), {}, {}};
  fill_head_norm(c.params, c.inputs);
  c.o = at::empty(c.inputs.g.sizes(), c.inputs.g.options());
  c.params.o = c.o.mutable_data_ptr();
  return c;
}

// joined: blocks of tokens for which the kernel leaves one sum.
inline HeadNormBackwardCall head_norm_backward_call(const at::Tensor& go, HeadNormInputs inputs,
                                                    int64_t joined) {
  HeadNormBackwardCall c{std::move(inputs), {}, {}, {}, {}, {}, {}, {}};
  HeadNormBackward& p = c.params;
  const at::Tensor &y = c.inputs.y, &g = c.inputs.g;
  fill_head_norm(p, c.inputs);
  check_shape(go, "go", "B, T, D", g.sizes());
  CHECK_LIKE(go, y);
  c.go = go.contiguous();
  c.gy = at::empty(y.sizes(), y.options()), c.gg = at::empty(g.sizes(), g.options());
  const bool has_bonus = c.inputs.v.defined();
  c.gv = at::empty(has_bonus ? y.sizes() : at::IntArrayRef{0}, y.options());
  c.gs = at::empty(has_bonus ? c.inputs.s.sizes() : at::IntArrayRef{0}, c.inputs.weight.options());
  c.sums = at::empty({(p.blocks() + joined - 1) / joined, 2, p.heads * p.size},
                     c.inputs.weight.options());
  p.go = c.go.const_data_ptr(), p.sums = c.sums.mutable_data_ptr();
  p.gy = c.gy.mutable_data_ptr(), p.gg = c.gg.mutable_data_ptr();
  p.gv = has_bonus ? c.gv.mutable_data_ptr() : nullptr;
  p.gs = has_bonus ? c.gs.mutable_data_ptr() : nullptr;
  return c;
}

}  // namespace rwkv
