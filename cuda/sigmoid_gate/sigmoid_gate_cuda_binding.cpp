// Gives the CUDA kernels of the sigmoid gate to the operators that sigmoid_gate_ops.cpp defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/pointwise_cuda.h"
#include "sigmoid_gate_cuda.h"

namespace rwkv::sigmoid_gate {
namespace {

using at::Tensor;

Tensor forward(const Tensor& r, const Tensor& y) {
  return run_pointwise_cuda<1, 2>("sigmoid_gate_forward", {r, y}, {"r", "y"},
                                  rwkv_sigmoid_gate_forward_cuda)[0];
}

std::tuple<Tensor, Tensor> backward(const Tensor& go, const Tensor& r, const Tensor& y) {
  const auto [gr, gy] = run_pointwise_cuda<2, 3>("sigmoid_gate_backward", {go, r, y},
                                                 {"go", "r", "y"}, rwkv_sigmoid_gate_backward_cuda);
  return {gr, gy};
}

}  // namespace
}  // namespace rwkv::sigmoid_gate

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("sigmoid_gate_forward", &rwkv::sigmoid_gate::forward);
  m.impl("sigmoid_gate_backward", &rwkv::sigmoid_gate::backward);
}
