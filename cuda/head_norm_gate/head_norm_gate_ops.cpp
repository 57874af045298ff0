// Schema of the gated head norm's operators (the contract with
// src/rwkv_train/ops/head_norm_gate/native.py) and their host code for the CPU.
//
// weight, bias: [D] and s: [B, T, H] in the computing type; v and s both or neither, and gv and gs
// are empty without them; gvectors: [2, D], the gradients of weight and bias.
#include <torch/library.h>

#include "../common/cpu/block_sums.h"
#include "../common/cpu/parallel.h"
#include "head_norm_gate_host.h"

namespace rwkv {
namespace head_norm_gate {

using at::Tensor;
using std::optional;

inline int64_t steps_per_block(const HeadNormSizes& p) { return kSumTokens * p.heads * p.size; }

inline Tensor forward_op(const Tensor& y, const Tensor& g, const Tensor& weight,
                         const Tensor& bias, const optional<Tensor>& v, const optional<Tensor>& s,
                         double eps, bool silu) {
  const auto call = head_norm_forward_call(head_norm_inputs(y, g, weight, bias, v, s, eps, silu));
  const HeadNormForward& p = call.params;
  share_tasks(p.blocks(), 4 * steps_per_block(p),
              [&](int64_t begin, int64_t end) { head_norm_gate_forward_cpu(p, begin, end); });
  return call.o;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_op(
    const Tensor& go, const Tensor& y, const Tensor& g, const Tensor& weight, const Tensor& bias,
    const optional<Tensor>& v, const optional<Tensor>& s, double eps, bool silu) {
  const auto call =
      head_norm_backward_call(go, head_norm_inputs(y, g, weight, bias, v, s, eps, silu), 1);
  const HeadNormBackward& p = call.params;
  share_tasks(p.blocks(), 8 * steps_per_block(p),
              [&](int64_t begin, int64_t end) { head_norm_gate_backward_cpu(p, begin, end); });
  return {call.gy, call.gg, sum_over_blocks(call.sums), call.gv, call.gs};
}

}  // namespace head_norm_gate
}  // namespace rwkv

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "head_norm_gate_forward(Tensor y, Tensor g, Tensor weight, Tensor bias, Tensor? v, "
      "Tensor? s, float eps, bool silu) -> Tensor");
  m.def(
      "head_norm_gate_backward(Tensor go, Tensor y, Tensor g, Tensor weight, Tensor bias, "
      "Tensor? v, Tensor? s, float eps, bool silu) -> (Tensor gy, Tensor gg, Tensor gvectors, "
      "Tensor gv, Tensor gs)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("head_norm_gate_forward", &rwkv::head_norm_gate::forward_op);
  m.impl("head_norm_gate_backward", &rwkv::head_norm_gate::backward_op);
}
