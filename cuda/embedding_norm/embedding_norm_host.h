// Host side of the embedding with its norm, the same for every device: checks the arguments, makes
// them contiguous, allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../common/torch/check.h"
#include "embedding_norm.h"

namespace rwkv::embedding_norm {

struct ForwardCall {
  at::Tensor ids, table, weight, bias, y;
  EmbeddingNormForward params;
};

struct BackwardCall {
  at::Tensor gy, table, weight, gtable, sums;  // sums: of the tasks
  EmbeddingNormBackward params;
};

inline void fill(EmbeddingNormSizes& p, const at::Tensor& ids, const at::Tensor& table,
                 const at::Tensor& weight, double eps) {
  TORCH_CHECK(table.dim() == 2 && table.numel() > 0, "table must be [V, C], no axis empty, got ",
              table.sizes());
  CHECK_DTYPE(ids, at::kLong);
  TORCH_CHECK(ids.numel() > 0, "ids must not be empty");
  const int64_t C = table.size(1);
  CHECK_SHAPE(weight, C);
  CHECK_DTYPE(weight, computing_type(table));
  p.tokens = ids.numel(), p.vocabulary = table.size(0), p.width = C;
  p.dtype = dtype_of(table, "table"), p.eps = eps;
}

inline ForwardCall forward_call(const at::Tensor& ids, const at::Tensor& table,
                                const at::Tensor& weight, const at::Tensor& bias, double eps) {
  ForwardCall c{ids.contiguous(), table.contiguous(), weight.contiguous(), bias.contiguous(), {},
                {}};
  EmbeddingNormForward& p = c.params;
  fill(p, ids, table, weight, eps);
  const int64_t C = p.width;
  CHECK_SHAPE(bias, C);
  CHECK_LIKE(bias, weight);
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(C);
  c.y = at::empty(shape, table.options());
  p.ids = c.ids.const_data_ptr<int64_t>(), p.table = c.table.const_data_ptr();
  p.weight = c.weight.const_data_ptr(), p.bias = c.bias.const_data_ptr();
  p.y = c.y.mutable_data_ptr();
  return c;
}

// order: as in EmbeddingNormBackward; tasks: how many sums the kernels leave.
inline BackwardCall backward_call(const at::Tensor& gy, const at::Tensor& ids,
                                  const at::Tensor& table, const at::Tensor& weight, double eps,
                                  bool wants_table, const int64_t* order, int64_t tasks) {
  BackwardCall c{gy.contiguous(), table.contiguous(), weight.contiguous(), {}, {}, {}};
  EmbeddingNormBackward& p = c.params;
  fill(p, ids, table, weight, eps);
  CHECK_LIKE(gy, table);
  TORCH_CHECK(gy.numel() == p.tokens * p.width && gy.size(-1) == p.width,
              "gy must be [..., C] with the axes of ids before C, got ", gy.sizes());
  c.gtable = wants_table ? at::zeros(table.sizes(), table.options())
                         : at::empty({0}, table.options());
  c.sums = at::empty({tasks, 2, p.width}, weight.options());
  p.gy = c.gy.const_data_ptr(), p.order = order;
  p.table = c.table.const_data_ptr(), p.weight = c.weight.const_data_ptr();
  p.gtable = wants_table ? c.gtable.mutable_data_ptr() : nullptr;
  p.sums = c.sums.mutable_data_ptr();
  return c;
}

}  // namespace rwkv::embedding_norm
