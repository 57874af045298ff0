// Host side of the value residual, the same for every device: checks the arguments, makes them
// contiguous, allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/check.h"
#include "value_residual.h"

namespace rwkv {

struct ValueResidualInputs {
  at::Tensor value, first, logits, base;
};

struct ValueResidualForwardCall {
  ValueResidualInputs inputs;
  at::Tensor v;
  ValueResidualForward params;
};

struct ValueResidualBackwardCall {
  ValueResidualInputs inputs;
  at::Tensor gv, gagain, gcarry, gvalue, gfirst, glogits;
  at::Tensor sums;  // per block of tokens
  ValueResidualBackward params;
};

inline ValueResidualInputs value_residual_inputs(const at::Tensor& value, const at::Tensor& first,
                                                 const at::Tensor& logits,
                                                 const at::Tensor& base) {
  TORCH_CHECK(value.dim() == 3 && value.numel() > 0, "value must be [B, T, D], no axis empty, got ",
              value.sizes());
  const int64_t B = value.size(0), T = value.size(1), D = value.size(2);
  CHECK_SHAPE(first, B, T, D);
  CHECK_LIKE(first, value);
  CHECK_SHAPE(logits, B, T, D);
  CHECK_LIKE(logits, value);
  CHECK_SHAPE(base, D);
  CHECK_DTYPE(base, computing_type(value));
  return {value.contiguous(), first.contiguous(), logits.contiguous(), base.contiguous()};
}

template <typename Params> void fill_value_residual(Params& p, const ValueResidualInputs& inputs) {
  const at::Tensor& value = inputs.value;
  p.batch = value.size(0), p.time = value.size(1), p.width = value.size(2);
  p.dtype = dtype_of(value, "value");
  p.value = value.const_data_ptr(), p.first = inputs.first.const_data_ptr();
  p.logits = inputs.logits.const_data_ptr(), p.base = inputs.base.const_data_ptr();
}

inline ValueResidualForwardCall value_residual_forward_call(const at::Tensor& value,
                                                            const at::Tensor& first,
                                                            const at::Tensor& logits,
                                                            const at::Tensor& base) {
  ValueResidualForwardCall c{value_residual_inputs(value, first, logits, base), {}, {}};
  fill_value_residual(c.params, c.inputs);
  c.v = at::empty(value.sizes(), value.options());
  c.params.v = c.v.mutable_data_ptr();
  return c;
}

// joined: blocks of tokens whose sums the kernel joins by itself
inline ValueResidualBackwardCall value_residual_backward_call(
    const at::Tensor& gv, const std::optional<at::Tensor>& gagain,
    const std::optional<at::Tensor>& gcarry, const at::Tensor& value, const at::Tensor& first,
    const at::Tensor& logits, const at::Tensor& base, int64_t joined) {
  ValueResidualBackwardCall c{
      value_residual_inputs(value, first, logits, base), {}, {}, {}, {}, {}, {}, {}, {}};
  ValueResidualBackward& p = c.params;
  fill_value_residual(p, c.inputs);
  check_shape(gv, "gv", "B, T, D", value.sizes());
  CHECK_LIKE(gv, value);
  const auto check_optional = [&](const std::optional<at::Tensor>& gradient, const char* name) {
    if (!gradient.has_value()) return;
    check_shape(*gradient, name, "B, T, D", value.sizes());
    check_like(*gradient, name, value, "value");
  };
  check_optional(gagain, "gagain");
  check_optional(gcarry, "gcarry");
  c.gv = gv.contiguous(), c.gagain = contiguous_or_undefined(gagain);
  c.gcarry = contiguous_or_undefined(gcarry);
  p.gv = c.gv.const_data_ptr(), p.gagain = data_or_null(c.gagain);
  p.gcarry = data_or_null(c.gcarry);
  for (at::Tensor* result : {&c.gvalue, &c.gfirst, &c.glogits}) {
    *result = at::empty(value.sizes(), value.options());
  }
  const int64_t blocks = p.batch * sum_blocks_of_row(p.time);
  c.sums = at::empty({(blocks + joined - 1) / joined, p.width}, base.options());
  p.gvalue = c.gvalue.mutable_data_ptr(), p.gfirst = c.gfirst.mutable_data_ptr();
  p.glogits = c.glogits.mutable_data_ptr(), p.sums = c.sums.mutable_data_ptr();
  return c;
}

}  // namespace rwkv
