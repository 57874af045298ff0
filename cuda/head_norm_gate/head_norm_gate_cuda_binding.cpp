// Gives the CUDA kernels of the gated head norm to the operators that head_norm_gate_ops.cpp
// defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "head_norm_gate_cuda.h"
#include "head_norm_gate_host.h"

namespace rwkv {
namespace head_norm_gate {

using at::Tensor;
using std::optional;

// Runs a launcher of head_norm_gate_cuda.h on the device of y, on torch's current stream there.
template <typename Params>
void run_on_gpu(const char* op, int (*launcher)(const Params&, void*), const Params& params,
                const Tensor& y) {
  const c10::cuda::CUDAGuard guard(y.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int code = launcher(params, stream.stream());
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "and head sizes 32, 64, 128 and 256; got ", y.scalar_type(), " ", y.sizes());
  check_launch(code, op);
}

inline HeadNormInputs aligned_inputs(const Tensor& y, const Tensor& g, const Tensor& weight,
                                     const Tensor& bias, const optional<Tensor>& v,
                                     const optional<Tensor>& s, double eps, bool silu) {
  return head_norm_inputs(aligned(y), aligned(g), aligned(weight), aligned(bias), aligned(v), s,
                          eps, silu);
}

inline Tensor forward_on_gpu(const Tensor& y, const Tensor& g, const Tensor& weight,
                             const Tensor& bias, const optional<Tensor>& v,
                             const optional<Tensor>& s, double eps, bool silu) {
  const auto call = head_norm_forward_call(aligned_inputs(y, g, weight, bias, v, s, eps, silu));
  run_on_gpu("head_norm_gate_forward", rwkv_head_norm_gate_forward_cuda, call.params, y);
  return call.o;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_on_gpu(
    const Tensor& go, const Tensor& y, const Tensor& g, const Tensor& weight, const Tensor& bias,
    const optional<Tensor>& v, const optional<Tensor>& s, double eps, bool silu) {
  auto call = head_norm_backward_call(
      aligned(go), aligned_inputs(y, g, weight, bias, v, s, eps, silu), kHeadNormJoinedBlocks);
  const Tensor total = at::empty(call.sums.sizes().slice(1), call.sums.options());
  call.params.total = total.mutable_data_ptr();
  run_on_gpu("head_norm_gate_backward", rwkv_head_norm_gate_backward_cuda, call.params, y);
  return {call.gy, call.gg, total, call.gv, call.gs};
}

}  // namespace head_norm_gate
}  // namespace rwkv

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("head_norm_gate_forward", &rwkv::head_norm_gate::forward_on_gpu);
  m.impl("head_norm_gate_backward", &rwkv::head_norm_gate::backward_on_gpu);
}
