// Schemas of the operators of norm_shift (the contract with src/rwkv_train/ops/norm_shift/native.py)
// and their host code for the CPU.
//
// weight, bias [C], mixes [n, C], last [B, C] are in the computing type; dtype: of the results.
// Without mixes the one result is the normalised token. Results that do not apply are empty.
// moved_shift reads the stream of a norm_shift again: `normal`, of which nothing is read, stands
// for the tokens that norm_shift has normalised, so that their gradients find the way there. With
// up [n, R, C] its moves are [n, B, T, R], and their product moves; gmoves are of the product.
// gvectors: of mixes, weight and bias, in this order; of moved_shift those of mixes.
#include <torch/library.h>

#include "../common/cpu/block_sums.h"
#include "../common/cpu/parallel.h"
#include "norm_shift_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

void run_norm_shift(const NormShiftForward& p) {
  share_tasks(p.batch * sum_blocks_of_row(p.time), kSumTokens * p.width * (p.count + 4),
              [&](int64_t begin, int64_t end) { norm_shift_forward_cpu(p, begin, end); });
}

Tensor run_norm_shift(const NormShiftBackwardCall& call) {
  const NormShiftBackward& p = call.params;
  share_tasks(p.batch * sum_blocks_of_row(p.time), 2 * kSumTokens * p.width * (p.count + 4),
              [&](int64_t begin, int64_t end) { norm_shift_backward_cpu(p, begin, end); });
  return sum_over_blocks(call.sums);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> norm_shift_forward(
    const Tensor& x, const optional<Tensor>& out, const optional<Tensor>& gate,
    const Tensor& weight, const Tensor& bias, const optional<Tensor>& mixes,
    const optional<Tensor>& last, const optional<Tensor>& reset, double eps, at::ScalarType dtype) {
  const auto call = norm_shift_forward_call(
      {x, weight, bias, mixes, last, reset, std::nullopt, out, gate, std::nullopt}, std::nullopt,
      eps, dtype);
  run_norm_shift(call.params);
  return {call.stream, call.statistics, call.h_last, norm_shift_stand_in(x, dtype), call.y};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_shift_backward(
    const c10::List<optional<Tensor>>& gy, const optional<Tensor>& gstream,
    const optional<Tensor>& gh_last, const optional<Tensor>& gnormal, const Tensor& stream,
    const Tensor& statistics, const optional<Tensor>& out, const optional<Tensor>& gate,
    const Tensor& weight, const Tensor& bias, const optional<Tensor>& mixes,
    const optional<Tensor>& last, const optional<Tensor>& reset, bool has_out,
    at::ScalarType dtype) {
  const auto call = norm_shift_backward_call(
      {gy, gstream, gh_last, gnormal},
      {stream, weight, bias, mixes, last, reset, std::nullopt, out, gate, std::nullopt}, statistics,
      has_out, dtype, false, 1);
  const Tensor gvectors = run_norm_shift(call);
  return {call.gx, call.gout, call.ggate, gvectors, call.glast};
}

std::vector<Tensor> moved_shift_forward(const Tensor& /*normal*/, const Tensor& stream,
                                        const Tensor& statistics, const Tensor& weight,
                                        const Tensor& bias, const Tensor& mixes,
                                        const Tensor& moves, const optional<Tensor>& up,
                                        const optional<Tensor>& last,
                                        const optional<Tensor>& reset) {
  const auto call = norm_shift_forward_call(
      {stream, weight, bias, mixes, last, reset, moves, std::nullopt, std::nullopt, up}, statistics,
      0, moves.scalar_type());
  run_norm_shift(call.params);
  return call.y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> moved_shift_backward(
    const c10::List<optional<Tensor>>& gy, const Tensor& stream, const Tensor& statistics,
    const Tensor& weight, const Tensor& bias, const Tensor& mixes, const Tensor& moves,
    const optional<Tensor>& up, const optional<Tensor>& last, const optional<Tensor>& reset) {
  const auto call = norm_shift_backward_call(
      {gy, std::nullopt, std::nullopt, std::nullopt},
      {stream, weight, bias, mixes, last, reset, moves, std::nullopt, std::nullopt, up}, statistics,
      false, moves.scalar_type(), true, 1);
  const Tensor gvectors = run_norm_shift(call);
  return {call.gnormal, gvectors, call.gmoves, call.glast};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "norm_shift_forward(Tensor x, Tensor? out, Tensor? gate, Tensor weight, Tensor bias, "
      "Tensor? mixes, Tensor? last, Tensor? reset, float eps, ScalarType dtype) -> "
      "(Tensor stream, Tensor statistics, Tensor h_last, Tensor normal, Tensor[] y)");
  m.def(
      "norm_shift_backward(Tensor?[] gy, Tensor? gstream, Tensor? gh_last, Tensor? gnormal, "
      "Tensor stream, Tensor statistics, Tensor? out, Tensor? gate, Tensor weight, Tensor bias, "
      "Tensor? mixes, Tensor? last, Tensor? reset, bool has_out, ScalarType dtype) -> "
      "(Tensor gx, Tensor gout, Tensor ggate, Tensor gvectors, Tensor glast)");
  m.def(
      "moved_shift_forward(Tensor normal, Tensor stream, Tensor statistics, Tensor weight, "
      "Tensor bias, Tensor mixes, Tensor moves, Tensor? up, Tensor? last, Tensor? reset) -> "
      "Tensor[]");
  m.def(
      "moved_shift_backward(Tensor?[] gy, Tensor stream, Tensor statistics, Tensor weight, "
      "Tensor bias, Tensor mixes, Tensor moves, Tensor? up, Tensor? last, Tensor? reset) -> "
      "(Tensor gnormal, Tensor gvectors, Tensor gmoves, Tensor glast)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("norm_shift_forward", &rwkv::norm_shift_forward);
  m.impl("norm_shift_backward", &rwkv::norm_shift_backward);
  m.impl("moved_shift_forward", &rwkv::moved_shift_forward);
  m.impl("moved_shift_backward", &rwkv::moved_shift_backward);
}
