// Schema of the sigmoid gate's operators (the contract with
// src/rwkv_train/ops/sigmoid_gate/native.py) and their host code for the CPU.
#include <torch/library.h>

#include <tuple>

#include "../common/cpu/pointwise_parallel.h"
#include "sigmoid_gate.h"

namespace rwkv::sigmoid_gate {
namespace {

using at::Tensor;

Tensor forward(const Tensor& r, const Tensor& y) {
  return run_pointwise_cpu<1, 2>({r, y}, {"r", "y"}, 4, sigmoid_gate_forward_cpu)[0];
}

std::tuple<Tensor, Tensor> backward(const Tensor& go, const Tensor& r, const Tensor& y) {
  const auto [gr, gy] =
      run_pointwise_cpu<2, 3>({go, r, y}, {"go", "r", "y"}, 4, sigmoid_gate_backward_cpu);
  return {gr, gy};
}

}  // namespace
}  // namespace rwkv::sigmoid_gate

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def("sigmoid_gate_forward(Tensor r, Tensor y) -> Tensor");
  m.def("sigmoid_gate_backward(Tensor go, Tensor r, Tensor y) -> (Tensor gr, Tensor gy)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("sigmoid_gate_forward", &rwkv::sigmoid_gate::forward);
  m.impl("sigmoid_gate_backward", &rwkv::sigmoid_gate::backward);
}
