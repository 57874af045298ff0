// Schema of the squared relu's operators (the contract with
// src/rwkv_train/ops/squared_relu/native.py) and their host code for the CPU.
#include <torch/library.h>

#include "../common/cpu/pointwise_parallel.h"
#include "squared_relu.h"

namespace rwkv::squared_relu {
namespace {

using at::Tensor;

Tensor forward(const Tensor& p) {
  return run_pointwise_cpu<1, 1>({p}, {"p"}, 1, squared_relu_forward_cpu)[0];
}

Tensor backward(const Tensor& gz, const Tensor& p) {
  return run_pointwise_cpu<1, 2>({gz, p}, {"gz", "p"}, 1, squared_relu_backward_cpu)[0];
}

}  // namespace
}  // namespace rwkv::squared_relu

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def("squared_relu_forward(Tensor p) -> Tensor");
  m.def("squared_relu_backward(Tensor gz, Tensor p) -> Tensor");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("squared_relu_forward", &rwkv::squared_relu::forward);
  m.impl("squared_relu_backward", &rwkv::squared_relu::backward);
}
