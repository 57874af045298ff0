// Gives the CUDA kernels of the value residual to the operators that value_residual_ops.cpp defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "value_residual_cuda.h"
#include "value_residual_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

// Runs a launcher of value_residual_cuda.h on the device of `value`, on torch's current stream.
template <typename Params>
void run_value_residual(const char* op, int (*launcher)(const Params&, void*),
                        const Params& params, const Tensor& value) {
  const c10::cuda::CUDAGuard guard(value.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int code = launcher(params, stream.stream());
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "and widths that are multiples of 8; got ", value.scalar_type(), " ", value.sizes());
  check_launch(code, op);
}

Tensor value_residual_forward_on_cuda(const Tensor& value, const Tensor& first,
                                      const Tensor& logits, const Tensor& base) {
  const auto call = value_residual_forward_call(aligned(value), aligned(first), aligned(logits),
                                                aligned(base));
  run_value_residual("value_residual_forward", rwkv_value_residual_forward_cuda, call.params,
                     value);
  return call.v;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> value_residual_backward_on_cuda(
    const Tensor& gv, const optional<Tensor>& gagain, const optional<Tensor>& gcarry,
    const Tensor& value, const Tensor& first, const Tensor& logits, const Tensor& base) {
  auto call = value_residual_backward_call(aligned(gv), aligned(gagain), aligned(gcarry),
                                           aligned(value), aligned(first), aligned(logits),
                                           aligned(base), kResidualJoinedBlocks);
  const Tensor gbase = at::empty(base.sizes(), base.options());
  call.params.total = gbase.mutable_data_ptr();
  run_value_residual("value_residual_backward", rwkv_value_residual_backward_cuda, call.params,
                     value);
  return {call.gvalue, call.gfirst, call.glogits, gbase};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("value_residual_forward", &rwkv::value_residual_forward_on_cuda);
  m.impl("value_residual_backward", &rwkv::value_residual_backward_on_cuda);
}
