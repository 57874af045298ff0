// Gives the CUDA kernels of the token shift to the operators that token_shift_ops.cpp defines.
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../common/torch/cuda_host.h"
#include "token_shift_cuda.h"
#include "token_shift_host.h"

namespace rwkv::token_shift {
namespace {

using at::Tensor;
using std::optional;

// Runs a launcher of token_shift_cuda.h on the device of x, on torch's current stream there.
template <typename Params>
void run(const char* op, int (*launcher)(const Params&, void*), const Params& params,
         const Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int code = launcher(params, stream.stream());
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "and widths below 2^31; got ", x.scalar_type(), " ", x.sizes());
  check_launch(code, op);
}

std::vector<Tensor> forward(const Tensor& x, const Tensor& mixes, const optional<Tensor>& last,
                            const optional<Tensor>& moves, const optional<Tensor>& reset,
                            at::ScalarType dtype) {
  const auto call = token_shift_forward_call(aligned(x), aligned(mixes), aligned(last),
                                             aligned(moves), reset, dtype);
  run("token_shift_forward", rwkv_token_shift_forward_cuda, call.params, x);
  return call.y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(at::TensorList gy, const Tensor& x,
                                                    const Tensor& mixes,
                                                    const optional<Tensor>& last,
                                                    const optional<Tensor>& moves,
                                                    const optional<Tensor>& reset) {
  std::vector<Tensor> aligned_gy;
  for (const Tensor& g : gy) aligned_gy.push_back(aligned(g));
  const auto call = token_shift_backward_call(aligned_gy, aligned(x), aligned(mixes), aligned(last),
                                              aligned(moves), reset, kShiftTokens);
  run("token_shift_backward", rwkv_token_shift_backward_cuda, call.params, x);
  return {call.gx, call.gmixes.sum(0), call.glast, call.gmoves};
}

}  // namespace
}  // namespace rwkv::token_shift

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("token_shift_forward", &rwkv::token_shift::forward);
  m.impl("token_shift_backward", &rwkv::token_shift::backward);
}
