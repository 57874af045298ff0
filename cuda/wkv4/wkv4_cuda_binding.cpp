// Gives the CUDA kernels of WKV-4 to the operators that wkv4_ops.cpp defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "wkv4_cuda.h"
#include "wkv4_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& w, const Tensor& u, const Tensor& k,
                                           const Tensor& v, const optional<Tensor>& state,
                                           const optional<Tensor>& reset,
                                           int64_t checkpoint_interval, int64_t kernel) {
  const auto call = wkv4_forward_call(aligned(w), aligned(u), aligned(k), aligned(v), state, reset,
                                      checkpoint_interval);
  run_on_cuda("wkv4_forward", call.params, kernel, k, rwkv_wkv4_forward_floats,
              rwkv_wkv4_forward_cuda);
  return {call.y, call.final_state, call.checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& gy, const optional<Tensor>& gfinal_state, const Tensor& w, const Tensor& u,
    const Tensor& k, const Tensor& v, const optional<Tensor>& reset, const Tensor& checkpoints,
    int64_t checkpoint_interval, int64_t kernel) {
  const auto call =
      wkv4_backward_call(aligned(gy), gfinal_state, aligned(w), aligned(u), aligned(k), aligned(v),
                         reset, checkpoints, checkpoint_interval);
  run_on_cuda("wkv4_backward", call.params, kernel, k, rwkv_wkv4_backward_floats,
              rwkv_wkv4_backward_cuda);
  return {call.gw.sum(0), call.gu.sum(0), call.gk, call.gv, call.gstate};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("wkv4_forward", &rwkv::forward);
  m.impl("wkv4_backward", &rwkv::backward);
}
