// Schema of the split tanh's operators (the contract with src/rwkv_train/ops/split_tanh/native.py)
// and their host code for the CPU.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../common/cpu/parallel.h"
#include "../common/torch/check.h"
#include "split_tanh.h"

namespace rwkv::split_tanh {
namespace {

using at::Tensor;

// Steps of an element, most of them those of the exponential.
constexpr int64_t kWork = 2;

template <typename Params, typename Kernel> void run(const Params& p, Kernel kernel) {
  const int64_t tasks = (p.tokens + kSplitTanhTokens - 1) / kSplitTanhTokens;
  share_tasks(tasks, kSplitTanhTokens * p.parts * p.rank * kWork,
              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

Tensor forward(const Tensor& x, int64_t parts) {
  TORCH_CHECK(x.dim() == 3, "x must be [B, T, n R], got ", x.sizes());
  TORCH_CHECK(parts > 0 && x.size(2) % parts == 0, "x must have ", parts,
              " parts of one size, got ", x.size(2), " channels");
  const Tensor from = x.contiguous();
  const int64_t B = x.size(0), T = x.size(1), rank = x.size(2) / parts;
  Tensor y = at::empty({parts, B, T, rank}, from.options());
  SplitTanhForward p{};
  static_cast<SplitTanhSizes&>(p) = {B * T, parts, rank, dtype_of(x, "x")};
  p.x = from.const_data_ptr(), p.y = y.mutable_data_ptr();
  run(p, split_tanh_forward_cpu);
  return y;
}

Tensor backward(const Tensor& gy, const Tensor& y) {
  TORCH_CHECK(y.dim() == 4, "y must be [n, B, T, R], got ", y.sizes());
  const int64_t parts = y.size(0), B = y.size(1), T = y.size(2), rank = y.size(3);
  check_shape(gy, "gy", "n, B, T, R", y.sizes()), check_like(gy, "gy", y, "y");
  const Tensor of_y = gy.contiguous(), of_x = y.contiguous();
  Tensor gx = at::empty({B, T, parts * rank}, of_x.options());
  SplitTanhBackward p{};
  static_cast<SplitTanhSizes&>(p) = {B * T, parts, rank, dtype_of(y, "y")};
  p.gy = of_y.const_data_ptr(), p.y = of_x.const_data_ptr(), p.gx = gx.mutable_data_ptr();
  run(p, split_tanh_backward_cpu);
  return gx;
}

}  // namespace
}  // namespace rwkv::split_tanh

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def("split_tanh_forward(Tensor x, int parts) -> Tensor");
  m.def("split_tanh_backward(Tensor gy, Tensor y) -> Tensor");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("split_tanh_forward", &rwkv::split_tanh::forward);
  m.impl("split_tanh_backward", &rwkv::split_tanh::backward);
}
