// Schema of the WKV-7 operators (the contract with src/rwkv_train/ops/wkv7/native.py) and their
// host code for the CPU.
//
// w: before the sigmoid. checkpoint_interval: the forward pass keeps the state at every so many
// tokens for the backward pass; 0 for none. kernel: 0 as suits the call, else LaunchOptions::split.
// state, final_state: [B, H, N_value, N_key]; checkpoints: [B, H, kept, N_key, N_value].
#include <torch/library.h>

#include "../common/cpu/parallel.h"
#include "wkv7_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& r, const Tensor& w, const Tensor& k,
                                           const Tensor& v, const Tensor& a, const Tensor& b,
                                           const optional<Tensor>& state,
                                           const optional<Tensor>& reset,
                                           int64_t checkpoint_interval, int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call = wkv7_forward_call(r, w, k, v, a, b, state, reset, checkpoint_interval);
  share_heads(call.params, wkv7_forward_cpu);
  return {call.y, call.final_state, call.checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& gy, const optional<Tensor>& gfinal_state, const Tensor& r, const Tensor& w,
    const Tensor& k, const Tensor& v, const Tensor& a, const Tensor& b,
    const optional<Tensor>& reset, const Tensor& checkpoints, int64_t checkpoint_interval,
    int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call = wkv7_backward_call(gy, gfinal_state, r, w, k, v, a, b, reset, checkpoints,
                                       checkpoint_interval);
  share_heads(call.params, wkv7_backward_cpu);
  return {call.gr, call.gw, call.gk, call.gv, call.ga, call.gb, call.gstate};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "wkv7_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? state, "
      "Tensor? reset, int checkpoint_interval, int kernel) -> "
      "(Tensor y, Tensor final_state, Tensor checkpoints)");
  m.def(
      "wkv7_backward(Tensor gy, Tensor? gfinal_state, Tensor r, Tensor w, Tensor k, Tensor v, "
      "Tensor a, Tensor b, Tensor? reset, Tensor checkpoints, int checkpoint_interval, int kernel) "
      "-> "
      "(Tensor gr, Tensor gw, Tensor gk, Tensor gv, Tensor ga, Tensor gb, Tensor gstate)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("wkv7_forward", &rwkv::forward);
  m.impl("wkv7_backward", &rwkv::backward);
}
