// Host side of the head's loss, the same for every device: checks the arguments and fills the
// parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <tuple>

#include "../common/torch/check.h"
#include "head_loss.h"

namespace rwkv::head_loss {

struct RowsCall {
  at::Tensor targets, mask, extra;  // contiguous; undefined where absent
  HeadLossRows params;
};

struct MeanCall {
  at::Tensor losses, mask, loss, total, sums;
  HeadLossMean params;
};

inline void check_writable(const at::Tensor& x, const char* name) {
  TORCH_CHECK(x.is_contiguous(), name, " must be contiguous, got strides ", x.strides());
}

inline void check_gradient_dtype(const at::Tensor& logits, at::ScalarType gradient_dtype) {
  const bool fits = gradient_dtype == logits.scalar_type() ||
                    (logits.scalar_type() == at::kFloat &&
                     (gradient_dtype == at::kBFloat16 || gradient_dtype == at::kHalf));
  TORCH_CHECK(fits, "the gradient must have the dtype of the logits or, of float32 ones, 16 bits; "
              "got ", gradient_dtype, " for logits in ", logits.scalar_type());
}

inline RowsCall rows_call(const at::Tensor& logits, const at::Tensor& targets,
                          const std::optional<at::Tensor>& mask,
                          const std::optional<at::Tensor>& extra,
                          const std::optional<at::Tensor>& extra_gradient,
                          const at::Tensor& losses, at::ScalarType gradient_dtype,
                          bool wants_gradient) {
  TORCH_CHECK(logits.dim() == 2 && logits.numel() > 0, "logits must be [n, V], no axis empty, got ",
              logits.sizes());
  const int64_t n = logits.size(0), V = logits.size(1);
  check_writable(logits, "logits");
  check_gradient_dtype(logits, gradient_dtype);
  CHECK_SHAPE(targets, n);
  CHECK_DTYPE(targets, at::kLong);
  CHECK_SHAPE(losses, n);
  CHECK_DTYPE(losses, computing_type(logits));
  check_writable(losses, "losses");
  if (mask.has_value()) {
    check_shape(*mask, "mask", "n", {n});
    check_dtype(*mask, "mask", computing_type(logits));
  }
  if (extra.has_value()) check_shape(*extra, "extra", "n, V", {n, V});
  if (extra_gradient.has_value()) {
    TORCH_CHECK(extra.has_value(), "extra_gradient without extra");
    check_shape(*extra_gradient, "extra_gradient", "n, V", {n, V});
    check_like(*extra_gradient, "extra_gradient", *extra, "extra");
    check_writable(*extra_gradient, "extra_gradient");
  }
  RowsCall c{targets.contiguous(), contiguous_or_undefined(mask), contiguous_or_undefined(extra),
             {}};
  HeadLossRows& p = c.params;
  p.rows = n, p.vocabulary = V, p.given_total = 0, p.wants_gradient = wants_gradient;
  p.dtype = dtype_of(logits, "logits");
  p.gradient_dtype = gradient_dtype == logits.scalar_type() ? p.dtype
                     : gradient_dtype == at::kHalf          ? DType::kHalf
                                                            : DType::kBFloat16;
  p.extra_dtype = extra.has_value() ? dtype_of(*extra, "extra") : p.dtype;
  p.logits = logits.mutable_data_ptr(), p.losses = losses.mutable_data_ptr();
  p.targets = c.targets.const_data_ptr<int64_t>();
  p.mask = data_or_null(c.mask), p.extra = data_or_null(c.extra);
  p.extra_gradient = extra_gradient.has_value() ? extra_gradient->mutable_data_ptr() : nullptr;
  return c;
}

inline MeanCall mean_call(const at::Tensor& losses, const std::optional<at::Tensor>& mask,
                          std::optional<double> total) {
  TORCH_CHECK(losses.dim() == 1 && losses.numel() > 0, "losses must be [n], not empty, got ",
              losses.sizes());
  check_dtype(losses, "losses", computing_type(losses));
  const int64_t n = losses.size(0);
  if (mask.has_value()) {
    check_shape(*mask, "mask", "n", {n});
    check_like(*mask, "mask", losses, "losses");
  }
  TORCH_CHECK(!total.has_value() || *total > 0, "total must be above 0, got ",
              total.value_or(0.0));
  const int64_t blocks = (n + kHeadLossBlock - 1) / kHeadLossBlock;
  MeanCall c{losses.contiguous(),
             contiguous_or_undefined(mask),
             at::empty({}, losses.options()),
             at::empty({}, losses.options()),
             at::empty({2, blocks}, losses.options().dtype(at::kDouble)),
             {}};
  HeadLossMean& p = c.params;
  p.rows = n, p.vocabulary = 0, p.wants_gradient = false, p.given_total = total.value_or(0.0);
  p.dtype = p.gradient_dtype = p.extra_dtype = dtype_of(losses, "losses");
  p.losses = c.losses.const_data_ptr(), p.mask = data_or_null(c.mask);
  p.loss = c.loss.mutable_data_ptr(), p.total = c.total.mutable_data_ptr();
  p.sums = c.sums.mutable_data_ptr<double>();
  return c;
}

}  // namespace rwkv::head_loss
