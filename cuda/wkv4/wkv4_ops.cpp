// Schema of the WKV-4 operators (the contract with src/rwkv_train/ops/wkv4/native.py) and their
// host code for the CPU.
//
// w: before both exponentials. checkpoint_interval: the forward pass keeps the state at every so
// many tokens for the backward pass; 0 for none. kernel: 0 as suits the call, else
// LaunchOptions::split. state, final_state: [B, 3, A], rows aa, bb, pp; checkpoints: [B, kept, 3,
// A]. The gradient of the final pp is not read; gw and gu are summed over the batch.
#include <torch/library.h>

#include "../common/cpu/parallel.h"
#include "wkv4_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

// An exponential costs about as much as ten multiplications with additions.
constexpr int64_t kStepsPerChannel = 20;

int64_t tasks(const Wkv4Sizes& p) {
  return p.batch * ((p.width + kWkv4Channels - 1) / kWkv4Channels);
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& w, const Tensor& u, const Tensor& k,
                                           const Tensor& v, const optional<Tensor>& state,
                                           const optional<Tensor>& reset,
                                           int64_t checkpoint_interval, int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call = wkv4_forward_call(w, u, k, v, state, reset, checkpoint_interval);
  const Wkv4Forward& p = call.params;
  share_tasks(tasks(p), p.time * kWkv4Channels * kStepsPerChannel,
              [&](int64_t begin, int64_t end) { wkv4_forward_cpu(p, begin, end); });
  return {call.y, call.final_state, call.checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& gy, const optional<Tensor>& gfinal_state, const Tensor& w, const Tensor& u,
    const Tensor& k, const Tensor& v, const optional<Tensor>& reset, const Tensor& checkpoints,
    int64_t checkpoint_interval, int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call =
      wkv4_backward_call(gy, gfinal_state, w, u, k, v, reset, checkpoints, checkpoint_interval);
  const Wkv4Backward& p = call.params;
  share_tasks(tasks(p), p.time * kWkv4Channels * kStepsPerChannel,
              [&](int64_t begin, int64_t end) { wkv4_backward_cpu(p, begin, end); });
  return {sum_over_batch(call.gw), sum_over_batch(call.gu), call.gk, call.gv, call.gstate};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "wkv4_forward(Tensor w, Tensor u, Tensor k, Tensor v, Tensor? state, Tensor? reset, "
      "int checkpoint_interval, int kernel) -> (Tensor y, Tensor final_state, Tensor checkpoints)");
  m.def(
      "wkv4_backward(Tensor gy, Tensor? gfinal_state, Tensor w, Tensor u, Tensor k, Tensor v, "
      "Tensor? reset, Tensor checkpoints, int checkpoint_interval, int kernel) -> "
      "(Tensor gw, Tensor gu, Tensor gk, Tensor gv, Tensor gstate)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("wkv4_forward", &rwkv::forward);
  m.impl("wkv4_backward", &rwkv::backward);
}
