// Schema of the token shift operators (the contract with
// src/rwkv_train/ops/token_shift/native.py) and their host code for the CPU.
//
// mixes: [n, C] in the computing type; moves: [n, B, T, C]; dtype: of the n results [B, T, C].
// gmoves is empty without moves.
#include <torch/library.h>

#include "../common/cpu/parallel.h"
#include "token_shift_host.h"

namespace rwkv::token_shift {
namespace {

using at::Tensor;
using std::optional;

int64_t work(const TokenShiftSizes& p) { return kTokenShiftTokens * p.width * (p.count + 2); }

std::vector<Tensor> forward(const Tensor& x, const Tensor& mixes, const optional<Tensor>& last,
                            const optional<Tensor>& moves, const optional<Tensor>& reset,
                            at::ScalarType dtype) {
  const auto call = token_shift_forward_call(x, mixes, last, moves, reset, dtype);
  const TokenShiftForward& p = call.params;
  share_tasks(token_shift_tasks(p, kTokenShiftTokens), work(p),
              [&](int64_t begin, int64_t end) { token_shift_forward_cpu(p, begin, end); });
  return call.y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(at::TensorList gy, const Tensor& x,
                                                    const Tensor& mixes,
                                                    const optional<Tensor>& last,
                                                    const optional<Tensor>& moves,
                                                    const optional<Tensor>& reset) {
  const auto call =
      token_shift_backward_call(gy, x, mixes, last, moves, reset, kTokenShiftTokens);
  const TokenShiftBackward& p = call.params;
  share_tasks(token_shift_tasks(p, kTokenShiftTokens), 2 * work(p),
              [&](int64_t begin, int64_t end) { token_shift_backward_cpu(p, begin, end); });
  return {call.gx, sum_over_batch(call.gmixes), call.glast, call.gmoves};
}

}  // namespace
}  // namespace rwkv::token_shift

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "token_shift_forward(Tensor x, Tensor mixes, Tensor? last, Tensor? moves, Tensor? reset, "
      "ScalarType dtype) -> Tensor[]");
  m.def(
      "token_shift_backward(Tensor[] gy, Tensor x, Tensor mixes, Tensor? last, Tensor? moves, "
      "Tensor? reset) -> (Tensor gx, Tensor gmixes, Tensor glast, Tensor gmoves)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("token_shift_forward", &rwkv::token_shift::forward);
  m.impl("token_shift_backward", &rwkv::token_shift::backward);
}
