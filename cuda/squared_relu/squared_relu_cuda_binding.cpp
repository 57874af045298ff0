// Gives the CUDA kernels of the squared relu to the operators that squared_relu_ops.cpp defines.
#include <torch/library.h>

#include "../common/torch/pointwise_cuda.h"
#include "squared_relu_cuda.h"

namespace rwkv::squared_relu {
namespace {

using at::Tensor;

Tensor forward(const Tensor& p) {
  return run_pointwise_cuda<1, 1>("squared_relu_forward", {p}, {"p"},
                                  rwkv_squared_relu_forward_cuda)[0];
}

Tensor backward(const Tensor& gz, const Tensor& p) {
  return run_pointwise_cuda<1, 2>("squared_relu_backward", {gz, p}, {"gz", "p"},
                                  rwkv_squared_relu_backward_cuda)[0];
}

}  // namespace
}  // namespace rwkv::squared_relu

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("squared_relu_forward", &rwkv::squared_relu::forward);
  m.impl("squared_relu_backward", &rwkv::squared_relu::backward);
}
