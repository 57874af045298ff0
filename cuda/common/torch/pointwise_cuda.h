// Runs a launcher of a pointwise kernel on torch's current stream.
#pragma once

#include "cuda_host.h"
#include "pointwise_host.h"

namespace rwkv {

// op: such as "squared_relu_forward"; launcher: as in <op>_cuda.h.
template <int kOutputs, int kInputs>
std::array<at::Tensor, kOutputs> run_pointwise_cuda(
    const char* op, std::array<at::Tensor, kInputs> inputs,
    const std::array<const char*, kInputs>& names,
    int (*launcher)(const Pointwise<kInputs, kOutputs>&, void*)) {
  for (at::Tensor& x : inputs) x = aligned(x);
  const auto call = pointwise_call<kOutputs, kInputs>(inputs, names);
  const c10::cuda::CUDAGuard guard(inputs[0].device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int code = launcher(call.params, stream.stream());
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "got ", inputs[0].scalar_type());
  check_launch(code, op);
  return call.outputs;
}

}  // namespace rwkv
