// The CPU operators of RWKV-5 and 6, for their schemas in wkv5_ops.cpp and wkv6_ops.cpp.
#pragma once

#include <optional>
#include <tuple>

#include "../common/cpu/parallel.h"
#include "wkv5_6_host.h"

namespace rwkv {

// kKernel: void(const Wkv5_6Forward&, int64_t most, int64_t begin, int64_t end)
template <bool kDecayPerToken, auto kKernel>
std::tuple<at::Tensor, at::Tensor, at::Tensor> wkv5_6_forward_on_cpu(
    const at::Tensor& r, const at::Tensor& k, const at::Tensor& v, const at::Tensor& w,
    const at::Tensor& u, const std::optional<at::Tensor>& state,
    const std::optional<at::Tensor>& reset, int64_t checkpoint_interval, int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call =
      wkv5_6_forward_call<kDecayPerToken>(r, k, v, w, u, state, reset, checkpoint_interval);
  share_heads(call.params, kKernel);
  return {call.y, call.final_state, call.checkpoints};
}

template <bool kDecayPerToken, auto kKernel>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
wkv5_6_backward_on_cpu(const at::Tensor& gy, const std::optional<at::Tensor>& gfinal_state,
                       const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& w, const at::Tensor& u,
                       const std::optional<at::Tensor>& reset, const at::Tensor& checkpoints,
                       int64_t checkpoint_interval, int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call = wkv5_6_backward_call<kDecayPerToken>(gy, gfinal_state, r, k, v, w, u, reset,
                                                         checkpoints, checkpoint_interval);
  share_heads(call.params, kKernel);
  const at::Tensor gw = kDecayPerToken ? call.gw : sum_over_batch(call.gw).to(w.scalar_type());
  return {call.gr, call.gk, call.gv, gw, sum_over_batch(call.gu), call.gstate};
}

}  // namespace rwkv
