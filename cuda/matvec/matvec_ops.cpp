// Schema of the matvec's operator (the contract with src/rwkv_train/ops/matvec/native.py) and its
// host code for the CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <memory>

#include "../common/cpu/parallel.h"
#include "../common/cpu/typed_rows.h"
#include "../common/torch/check.h"
#include "matvec.h"

namespace rwkv::matvec {
namespace {

using at::Tensor;

void check(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale) {
  TORCH_CHECK(weight.dim() == 2 && weight.numel() > 0, "weight must be [N, K], no axis empty, got ",
              weight.sizes());
  const int64_t N = weight.size(0), K = weight.size(1);
  TORCH_CHECK(x.dim() > 0 && x.size(-1) == K && x.numel() > 0 && x.numel() <= kMostMatvecRows * K,
              "x must be [..., K] with K = ", K, " and 1 to ", kMostMatvecRows, " vectors, got ",
              x.sizes());
  TORCH_CHECK(dtype_of(x, "x") != DType::kDouble, "x must not be float64");
  if (!scale.has_value()) {
    TORCH_CHECK(dtype_of(weight, "weight") != DType::kDouble, "weight must not be float64");
    return;
  }
  CHECK_DTYPE(weight, at::kChar);
  CHECK_SHAPE(*scale, N);
  CHECK_DTYPE(*scale, at::kFloat);
}

Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale) {
  check(x, weight, scale);
  const Tensor given = x.contiguous(), whole = weight.contiguous();
  const Tensor scales = contiguous_or_undefined(scale);
  Matvec p;
  p.outputs = weight.size(0), p.inputs = weight.size(1), p.batch = x.numel() / p.inputs;
  p.dtype = scales.defined() ? DType::kFloat : dtype_of(weight, "weight");
  p.weight = whole.const_data_ptr();
  p.scale = static_cast<const float*>(data_or_null(scales));
  auto sizes = x.sizes().vec();
  sizes.back() = p.outputs;
  Tensor y = at::empty(sizes, x.options());
  // Widened and narrowed here: operators of their own would take longer than small products.
  const DType dtype = dtype_of(x, "x");
  std::unique_ptr<float[]> wide;
  if (dtype == DType::kFloat) {
    p.x = given.const_data_ptr<float>(), p.y = y.mutable_data_ptr<float>();
  } else {
    wide.reset(new float[x.numel() + y.numel()]);
    load_row<float>(given.const_data_ptr(), dtype, 0, x.numel(), wide.get());
    p.x = wide.get(), p.y = wide.get() + x.numel();
  }
  const int64_t tasks = (p.outputs + kMatvecTaskRows - 1) / kMatvecTaskRows;
  share_tasks(tasks, kMatvecTaskRows * p.inputs,
              [&](int64_t begin, int64_t end) { matvec_forward_cpu(p, begin, end); });
  if (wide) store_row<float>(y.mutable_data_ptr(), dtype, 0, y.numel(), p.y);
  return y;
}

}  // namespace
}  // namespace rwkv::matvec

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def("matvec_forward(Tensor x, Tensor weight, Tensor? scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) { m.impl("matvec_forward", &rwkv::matvec::forward); }
