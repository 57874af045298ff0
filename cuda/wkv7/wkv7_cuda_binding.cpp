// Gives the CUDA kernels of WKV-7 to the operators that wkv7_ops.cpp defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "wkv7_cuda.h"
#include "wkv7_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a,
    const Tensor& b, const optional<Tensor>& base, const optional<Tensor>& bonus,
    const optional<Tensor>& /* w_gradient */, const optional<Tensor>& state,
    const optional<Tensor>& reset, bool with_final_state, int64_t checkpoint_interval,
    int64_t kernel) {
  const auto call = wkv7_forward_call(aligned(r), aligned_fp32(w), aligned(k), aligned(v),
                                      aligned(a), aligned(b), aligned(base), aligned(bonus),
                                      aligned(state), reset, with_final_state, checkpoint_interval);
  run_on_cuda("wkv7_forward", call.params, kernel, r, rwkv_wkv7_forward_floats,
              rwkv_wkv7_forward_cuda);
  return {call.y, call.final_state, call.checkpoints, call.s};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& gy, const optional<Tensor>& gfinal_state, const optional<Tensor>& gs,
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a,
    const Tensor& b, const optional<Tensor>& base, const optional<Tensor>& bonus,
    const optional<Tensor>& reset, const Tensor& checkpoints, bool with_gstate,
    at::ScalarType gw_dtype, int64_t checkpoint_interval, int64_t kernel) {
  const auto call = wkv7_backward_call(
      aligned(gy), aligned(gfinal_state), gs, aligned(r), aligned_fp32(w), aligned(k), aligned(v),
      aligned(a), aligned(b), aligned(base), aligned(bonus), reset, aligned(checkpoints),
      with_gstate, gw_type_of_kernels(gw_dtype, r), checkpoint_interval);
  run_on_cuda("wkv7_backward", call.params, kernel, r, rwkv_wkv7_backward_floats,
              rwkv_wkv7_backward_cuda);
  return {call.gr,
          call.gw.to(gw_dtype),
          call.gk,
          call.gv,
          call.ga,
          call.gb,
          row_sum_if_wanted(base.has_value(), call.gbase),
          row_sum_if_wanted(bonus.has_value(), call.gbonus),
          if_wanted(with_gstate, call.gstate)};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("wkv7_forward", &rwkv::forward);
  m.impl("wkv7_backward", &rwkv::backward);
}
