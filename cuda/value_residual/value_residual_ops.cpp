// Schema of the operators of the value residual (the contract with
// src/rwkv_train/ops/value_residual/native.py) and their host code for the CPU.
//
// base: [D] in the computing type; gagain and gcarry: added to the gradients of v and first.
#include <torch/library.h>

#include "../common/cpu/block_sums.h"
#include "../common/cpu/parallel.h"
#include "value_residual_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

// Steps of share_tasks; a sigmoid costs about as much as this many multiply-adds.
int64_t value_residual_work(const ValueResidualSizes& p) {
  return 8 * p.batch * p.time * p.width / value_residual_tasks(p);
}

Tensor value_residual_forward(const Tensor& value, const Tensor& first, const Tensor& logits,
                              const Tensor& base) {
  const auto call = value_residual_forward_call(value, first, logits, base);
  const ValueResidualForward& p = call.params;
  share_tasks(value_residual_tasks(p), value_residual_work(p),
              [&](int64_t begin, int64_t end) { value_residual_forward_cpu(p, begin, end); });
  return call.v;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> value_residual_backward(
    const Tensor& gv, const optional<Tensor>& gagain, const optional<Tensor>& gcarry,
    const Tensor& value, const Tensor& first, const Tensor& logits, const Tensor& base) {
  const auto call = value_residual_backward_call(gv, gagain, gcarry, value, first, logits, base, 1);
  const ValueResidualBackward& p = call.params;
  share_tasks(value_residual_tasks(p), value_residual_work(p),
              [&](int64_t begin, int64_t end) { value_residual_backward_cpu(p, begin, end); });
  return {call.gvalue, call.gfirst, call.glogits, sum_over_blocks(call.sums)};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "value_residual_forward(Tensor value, Tensor first, Tensor logits, Tensor base) -> Tensor v");
  m.def(
      "value_residual_backward(Tensor gv, Tensor? gagain, Tensor? gcarry, Tensor value, "
      "Tensor first, Tensor logits, Tensor base) -> "
      "(Tensor gvalue, Tensor gfirst, Tensor glogits, Tensor gbase)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("value_residual_forward", &rwkv::value_residual_forward);
  m.impl("value_residual_backward", &rwkv::value_residual_backward);
}
