// Host side of the pointwise operators, the same for every device: checks that all arguments are
// alike, makes them contiguous, allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <array>

#include "../params/pointwise_params.h"
#include "check.h"

namespace rwkv {

template <int kInputs, int kOutputs> struct PointwiseCall {
  std::array<at::Tensor, kInputs> inputs;
  std::array<at::Tensor, kOutputs> outputs;
  Pointwise<kInputs, kOutputs> params;
};

// names: of the inputs.
template <int kOutputs, int kInputs>
PointwiseCall<kInputs, kOutputs> pointwise_call(const std::array<at::Tensor, kInputs>& inputs,
                                                const std::array<const char*, kInputs>& names) {
  PointwiseCall<kInputs, kOutputs> c{inputs, {}, {}};
  const at::Tensor& first = inputs[0];
  c.params.count = first.numel(), c.params.dtype = dtype_of(first, names[0]);
  for (int i = 0; i < kInputs; ++i) {
    TORCH_CHECK(inputs[i].sizes() == first.sizes(), names[i], " must be ", first.sizes(), " like ",
                names[0], ", got ", inputs[i].sizes());
    check_like(inputs[i], names[i], first, names[0]);
    c.inputs[i] = inputs[i].contiguous();
    c.params.inputs[i] = c.inputs[i].const_data_ptr();
  }
  for (int i = 0; i < kOutputs; ++i) {
    c.outputs[i] = at::empty(first.sizes(), first.options());
    c.params.outputs[i] = c.outputs[i].mutable_data_ptr();
  }
  return c;
}

}  // namespace rwkv
