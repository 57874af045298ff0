// Schema of the operators of the bonus's weight (the contract with
// src/rwkv_train/ops/bonus/native.py) and their host code for the CPU.
//
// weight: [H, N] and s: [B, T, H] in the computing type; gr_carry, gk_carry: what is added to the
// gradients of r and k.
#include <torch/library.h>

#include "../common/cpu/block_sums.h"
#include "../common/cpu/parallel.h"
#include "bonus_host.h"

namespace rwkv {
namespace bonus {

using at::Tensor;
using std::optional;

inline int64_t steps_per_block(const BonusSizes& p) { return kSumTokens * p.heads * p.size; }

inline Tensor forward_op(const Tensor& r, const Tensor& k, const Tensor& weight) {
  const auto call = bonus_forward_call(r, k, weight);
  const BonusForward& p = call.params;
  share_tasks(p.blocks(), 2 * steps_per_block(p),
              [&](int64_t begin, int64_t end) { bonus_forward_cpu(p, begin, end); });
  return call.s;
}

inline std::tuple<Tensor, Tensor, Tensor> backward_op(
    const Tensor& gs, const optional<Tensor>& gr_carry, const optional<Tensor>& gk_carry,
    const Tensor& r, const Tensor& k, const Tensor& weight) {
  const auto call = bonus_backward_call(gs, gr_carry, gk_carry, r, k, weight, 1);
  const BonusBackward& p = call.params;
  share_tasks(p.blocks(), 4 * steps_per_block(p),
              [&](int64_t begin, int64_t end) { bonus_backward_cpu(p, begin, end); });
  return {call.gr, call.gk, sum_over_blocks(call.sums)};
}

}  // namespace bonus
}  // namespace rwkv

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def("bonus_forward(Tensor r, Tensor k, Tensor weight) -> Tensor s");
  m.def(
      "bonus_backward(Tensor gs, Tensor? gr_carry, Tensor? gk_carry, Tensor r, Tensor k, "
      "Tensor weight) -> (Tensor gr, Tensor gk, Tensor gweight)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("bonus_forward", &rwkv::bonus::forward_op);
  m.impl("bonus_backward", &rwkv::bonus::backward_op);
}
