// Torch's side of the CUDA kernels of RWKV-5 and 6.
#pragma once

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "wkv5_6_cuda.h"
#include "wkv5_6_host.h"

namespace rwkv {

template <bool kDecayPerToken>
std::tuple<at::Tensor, at::Tensor, at::Tensor> wkv5_6_forward_on_cuda(
    const at::Tensor& r, const at::Tensor& k, const at::Tensor& v, const at::Tensor& w,
    const at::Tensor& u, const std::optional<at::Tensor>& base,
    const std::optional<at::Tensor>& /* w_gradient */, const std::optional<at::Tensor>& state,
    const std::optional<at::Tensor>& reset, bool with_final_state, int64_t checkpoint_interval,
    int64_t kernel) {
  const auto call = wkv5_6_forward_call<kDecayPerToken>(
      aligned(r), aligned(k), aligned(v), aligned_fp32(w), aligned(u), aligned(base),
      aligned(state), reset, with_final_state, checkpoint_interval);
  run_on_cuda(kDecayPerToken ? "wkv6_forward" : "wkv5_forward", call.params, kernel, r,
              &Wkv5_6Launchers<kDecayPerToken>::forward_floats,
              &Wkv5_6Launchers<kDecayPerToken>::forward_cuda);
  return {call.y, call.final_state, call.checkpoints};
}

template <bool kDecayPerToken> std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                          at::Tensor, at::Tensor, at::Tensor>
wkv5_6_backward_on_cuda(const at::Tensor& gy, const std::optional<at::Tensor>& gfinal_state,
                       const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& w, const at::Tensor& u,
                       const std::optional<at::Tensor>& base,
                       const std::optional<at::Tensor>& reset, const at::Tensor& checkpoints,
                       bool with_gstate, at::ScalarType gw_dtype, int64_t checkpoint_interval,
                       int64_t kernel) {
  const auto call = wkv5_6_backward_call<kDecayPerToken>(
      aligned(gy), aligned(gfinal_state), aligned(r), aligned(k), aligned(v), aligned_fp32(w),
      aligned(u), aligned(base), reset, aligned(checkpoints), with_gstate,
      gw_type_of_kernels(gw_dtype, r), checkpoint_interval);
  run_on_cuda(kDecayPerToken ? "wkv6_backward" : "wkv5_backward", call.params, kernel, r,
              &Wkv5_6Launchers<kDecayPerToken>::backward_floats,
              &Wkv5_6Launchers<kDecayPerToken>::backward_cuda);
  // RWKV-5's w is one row for all batch rows; the kernels leave a gradient per batch row, so that
  // no two blocks add to the same element.
  const at::Tensor gw = kDecayPerToken ? call.gw : call.gw.sum(0);
  return {call.gr,
          call.gk,
          call.gv,
          gw.to(gw_dtype),
          call.gu.sum(0),
          row_sum_if_wanted(base.has_value(), call.gbase),
          if_wanted(with_gstate, call.gstate)};
}

}  // namespace rwkv
