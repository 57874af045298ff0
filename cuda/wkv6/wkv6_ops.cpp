// Schema of the WKV-6 operators (the contract with src/ops/wkv6/native.py) and their host code for
// the CPU.
//
// keep_every: the forward pass keeps the state at every so many tokens for the backward pass; 0 for
// none. state, final_state: [B, H, N_value, N_key]; checkpoints: [B, H, kept, N_key, N_value]. gu is
// already summed over the batch.
#include <torch/library.h>

#include "../common/cpu_parallel.h"
#include "../common/outer_host.h"
#include "wkv6.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& r, const Tensor& k, const Tensor& v,
                                           const Tensor& w, const Tensor& u,
                                           const optional<Tensor>& state,
                                           const optional<Tensor>& reset, int64_t keep_every) {
  const auto call = outer_forward_call<true>(r, k, v, w, u, state, reset, keep_every);
  const OuterForward& p = call.params;
  share_tasks(p.batch * p.heads, p.time * p.size * p.size,
              [&](int64_t begin, int64_t end) { wkv6_forward_cpu(p, begin, end); });
  return {call.y, call.final_state, call.checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& gy, const optional<Tensor>& gfinal_state, const Tensor& r, const Tensor& k,
    const Tensor& v, const Tensor& w, const Tensor& u, const optional<Tensor>& reset,
    const Tensor& checkpoints, int64_t keep_every) {
  const auto call = outer_backward_call<true>(gy, gfinal_state, r, k, v, w, u, reset, checkpoints,
                                              keep_every);
  const OuterBackward& p = call.params;
  share_tasks(p.batch * p.heads, p.time * p.size * p.size,
              [&](int64_t begin, int64_t end) { wkv6_backward_cpu(p, begin, end); });
  return {call.gr, call.gk, call.gv, call.gw, sum_over_batch(call.gu), call.gstate};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "wkv6_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? state, "
      "Tensor? reset, int keep_every) -> (Tensor y, Tensor final_state, Tensor checkpoints)");
  m.def(
      "wkv6_backward(Tensor gy, Tensor? gfinal_state, Tensor r, Tensor k, Tensor v, Tensor w, "
      "Tensor u, Tensor? reset, Tensor checkpoints, int keep_every) -> "
      "(Tensor gr, Tensor gk, Tensor gv, Tensor gw, Tensor gu, Tensor gstate)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("wkv6_forward", &rwkv::forward);
  m.impl("wkv6_backward", &rwkv::backward);
}
