// Schema of the WKV-7 operators (the contract with src/rwkv_train/ops/wkv7/native.py) and their
// host code for the CPU.
//
// w: before the sigmoid, without base, which is added to it. s: the sums of r k bonus over a head.
// w_gradient: what autograd takes for w, so that its gradient may have another type; nothing reads
// it. with_final_state, with_gstate: without, these results have no elements; nor have gbase, s and
// gbonus without base and bonus. gw_dtype: that of gw.
// checkpoint_interval: the forward pass keeps the state at every so many tokens for the backward
// pass; 0 for none. kernel: 0 as suits the call, else LaunchOptions::split.
// state, final_state: [B, H, N_value, N_key]; checkpoints: [B, H, kept, N_key, N_value].
#include <torch/library.h>

#include "../common/cpu/parallel.h"
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
  check_cpu_kernel(kernel);
  const auto call = wkv7_forward_call(r, w, k, v, a, b, base, bonus, state, reset,
                                      with_final_state, checkpoint_interval);
  share_heads(call.params, wkv7_forward_cpu);
  return {call.y, call.final_state, call.checkpoints, call.s};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& gy, const optional<Tensor>& gfinal_state, const optional<Tensor>& gs,
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a,
    const Tensor& b, const optional<Tensor>& base, const optional<Tensor>& bonus,
    const optional<Tensor>& reset, const Tensor& checkpoints, bool with_gstate,
    at::ScalarType gw_dtype, int64_t checkpoint_interval, int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call =
      wkv7_backward_call(gy, gfinal_state, gs, r, w, k, v, a, b, base, bonus, reset, checkpoints,
                         with_gstate, gw_dtype, checkpoint_interval);
  share_heads(call.params, wkv7_backward_cpu);
  return {call.gr,
          call.gw,
          call.gk,
          call.gv,
          call.ga,
          call.gb,
          if_wanted(base.has_value(), sum_over_batch(call.gbase)),
          if_wanted(bonus.has_value(), sum_over_batch(call.gbonus)),
          if_wanted(with_gstate, call.gstate)};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "wkv7_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? base, "
      "Tensor? bonus, Tensor? w_gradient, Tensor? state, Tensor? reset, bool with_final_state, "
      "int checkpoint_interval, int kernel) -> "
      "(Tensor y, Tensor final_state, Tensor checkpoints, Tensor s)");
  m.def(
      "wkv7_backward(Tensor gy, Tensor? gfinal_state, Tensor? gs, Tensor r, Tensor w, Tensor k, "
      "Tensor v, Tensor a, Tensor b, Tensor? base, Tensor? bonus, Tensor? reset, "
      "Tensor checkpoints, bool with_gstate, ScalarType gw_dtype, int checkpoint_interval, "
      "int kernel) -> "
      "(Tensor gr, Tensor gw, Tensor gk, Tensor gv, Tensor ga, Tensor gb, Tensor gbase, "
      "Tensor gbonus, Tensor gstate)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("wkv7_forward", &rwkv::forward);
  m.impl("wkv7_backward", &rwkv::backward);
}
