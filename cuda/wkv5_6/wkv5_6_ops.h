// Schema of the operators of WKV-5 and WKV-6 (the contract with src/rwkv_train/ops/wkv5/native.py
// and src/rwkv_train/ops/wkv6/native.py) and their host code for the CPU.
//
// w: before the double exponential; of WKV-6 per token and without base, which is added to it, of
// WKV-5 [H, N] and alone. w_gradient: what autograd takes for w, so that its gradient may have
// another type; nothing reads it. with_final_state, with_gstate: without, these results have no
// elements; nor has gbase without base. gw_dtype: that of gw. checkpoint_interval: the forward pass
// keeps the state at every so many tokens for the backward pass; 0 for none. kernel: 0 as suits the
// call, else LaunchOptions::split.
// state, final_state: [B, H, N_value, N_key]; checkpoints: [B, H, kept, N_key, N_value].
// gu, gbase and WKV-5's gw are summed over the batch.
#pragma once

#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "../common/cpu/parallel.h"
#include "wkv5_6_cpu.h"
#include "wkv5_6_host.h"

namespace rwkv {

// op: "wkv5" or "wkv6"
inline void define_wkv5_6(torch::Library& library, const std::string& op) {
  const std::string forward =
      op +
      "_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? base, "
      "Tensor? w_gradient, Tensor? state, Tensor? reset, bool with_final_state, "
      "int checkpoint_interval, int kernel) -> "
      "(Tensor y, Tensor final_state, Tensor checkpoints)";
  const std::string backward =
      op +
      "_backward(Tensor gy, Tensor? gfinal_state, Tensor r, Tensor k, Tensor v, Tensor w, "
      "Tensor u, Tensor? base, Tensor? reset, Tensor checkpoints, bool with_gstate, "
      "ScalarType gw_dtype, int checkpoint_interval, int kernel) -> "
      "(Tensor gr, Tensor gk, Tensor gv, Tensor gw, Tensor gu, Tensor gbase, Tensor gstate)";
  library.def(forward.c_str());
  library.def(backward.c_str());
}

template <bool kDecayPerToken>
std::tuple<at::Tensor, at::Tensor, at::Tensor> wkv5_6_forward_on_cpu(
    const at::Tensor& r, const at::Tensor& k, const at::Tensor& v, const at::Tensor& w,
    const at::Tensor& u, const std::optional<at::Tensor>& base,
    const std::optional<at::Tensor>& /* w_gradient */, const std::optional<at::Tensor>& state,
    const std::optional<at::Tensor>& reset, bool with_final_state, int64_t checkpoint_interval,
    int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call = wkv5_6_forward_call<kDecayPerToken>(r, k, v, w, u, base, state, reset,
                                                        with_final_state, checkpoint_interval);
  share_heads(call.params, &Wkv5_6CpuKernels<kDecayPerToken>::forward);
  return {call.y, call.final_state, call.checkpoints};
}

template <bool kDecayPerToken> std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                          at::Tensor, at::Tensor, at::Tensor>
wkv5_6_backward_on_cpu(const at::Tensor& gy, const std::optional<at::Tensor>& gfinal_state,
                       const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& w, const at::Tensor& u,
                       const std::optional<at::Tensor>& base,
                       const std::optional<at::Tensor>& reset, const at::Tensor& checkpoints,
                       bool with_gstate, at::ScalarType gw_dtype, int64_t checkpoint_interval,
                       int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call =
      wkv5_6_backward_call<kDecayPerToken>(gy, gfinal_state, r, k, v, w, u, base, reset,
                                           checkpoints, with_gstate, gw_dtype, checkpoint_interval);
  share_heads(call.params, &Wkv5_6CpuKernels<kDecayPerToken>::backward);
  const at::Tensor gw = kDecayPerToken ? call.gw : sum_over_batch(call.gw).to(gw_dtype);
  return {call.gr,
          call.gk,
          call.gv,
          gw,
          sum_over_batch(call.gu),
          if_wanted(base.has_value(), sum_over_batch(call.gbase)),
          if_wanted(with_gstate, call.gstate)};
}

}  // namespace rwkv
