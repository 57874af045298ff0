// Schema of the operators of the head's loss (the contract with
// src/rwkv_train/ops/head_loss/native.py) and their host code for the CPU.
//
// logits: [n, V]. With wants_gradient their memory holds the gradient afterwards, in
// gradient_dtype, at the start of each row. mask, losses: [n] in the computing type.
#include <torch/library.h>

#include "../common/cpu/parallel.h"
#include "head_loss_host.h"

namespace rwkv::head_loss {
namespace {

using at::Tensor;
using std::optional;

// Steps per logit: an exponential and three walks over the row.
constexpr int64_t kStepsPerLogit = 8;

void rows(const Tensor& logits, const Tensor& targets, const optional<Tensor>& mask,
          const optional<Tensor>& extra, const optional<Tensor>& extra_gradient,
          const Tensor& losses, at::ScalarType gradient_dtype, bool wants_gradient) {
  const auto call = rows_call(logits, targets, mask, extra, extra_gradient, losses, gradient_dtype,
                              wants_gradient);
  const HeadLossRows& p = call.params;
  for (int64_t i = 0; i < p.rows; ++i) {
    TORCH_CHECK(p.targets[i] >= 0 && p.targets[i] < p.vocabulary, "targets hold ", p.targets[i],
                ", expected 0 .. ", p.vocabulary - 1, ", the columns of logits");
  }
  share_tasks(p.rows, kStepsPerLogit * p.vocabulary,
              [&](int64_t begin, int64_t end) { head_loss_rows_cpu(p, begin, end); });
}

std::tuple<Tensor, Tensor> mean(const Tensor& losses, const optional<Tensor>& mask,
                                optional<double> total) {
  const auto call = mean_call(losses, mask, total);
  head_loss_mean_cpu(call.params);
  return {call.loss, call.total};
}

}  // namespace
}  // namespace rwkv::head_loss

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "head_loss_rows_(Tensor(a!) logits, Tensor targets, Tensor? mask, Tensor? extra, "
      "Tensor(b!)? extra_gradient, Tensor(c!) losses, ScalarType gradient_dtype, "
      "bool wants_gradient) -> ()");
  m.def("head_loss_mean(Tensor losses, Tensor? mask, float? total) -> (Tensor loss, Tensor total)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("head_loss_rows_", &rwkv::head_loss::rows);
  m.impl("head_loss_mean", &rwkv::head_loss::mean);
}
