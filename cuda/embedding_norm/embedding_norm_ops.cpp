// Schema of the embedding with its norm (the contract with
// src/rwkv_train/ops/embedding_norm/native.py) and its host code for the CPU.
//
// ids: any shape; table: [V, C]; weight, bias: [C] in the computing type. gtable is empty unless
// wants_table.
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../common/cpu/parallel.h"
#include "embedding_norm_host.h"

namespace rwkv::embedding_norm {
namespace {

using at::Tensor;

void check_ids(const Tensor& ids, int64_t vocabulary) {
  const int64_t* const id = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    TORCH_CHECK(id[i] >= 0 && id[i] < vocabulary, "ids hold ", id[i], ", expected 0 .. ",
                vocabulary - 1, ", the rows of the table");
  }
}

// The places of tokens sorted by id, those of one id in order, and where each id begins.
struct Occurrences {
  std::vector<int64_t> order, ids, starts;

  Occurrences(const Tensor& tokens, int64_t vocabulary) : order(tokens.numel()) {
    const int64_t* const id = tokens.const_data_ptr<int64_t>();
    const int64_t count = tokens.numel();
    std::vector<int64_t> next(vocabulary, 0);
    for (int64_t i = 0; i < count; ++i) ++next[id[i]];
    int64_t place = 0;
    for (int64_t v = 0; v < vocabulary; ++v) {
      if (next[v] == 0) continue;
      ids.push_back(v);
      starts.push_back(place);
      place += std::exchange(next[v], place);
    }
    starts.push_back(count);
    for (int64_t i = 0; i < count; ++i) order[next[id[i]]++] = i;
  }
};

Tensor forward(const Tensor& ids, const Tensor& table, const Tensor& weight, const Tensor& bias,
               double eps) {
  const auto call = forward_call(ids, table, weight, bias, eps);
  const EmbeddingNormForward& p = call.params;
  check_ids(call.ids, p.vocabulary);
  share_tasks(p.tokens, 2 * p.width,
              [&](int64_t begin, int64_t end) { embedding_norm_forward_cpu(p, begin, end); });
  return call.y;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& gy, const Tensor& ids,
                                            const Tensor& table, const Tensor& weight, double eps,
                                            bool wants_table) {
  const Tensor tokens = ids.contiguous();
  check_ids(tokens, table.size(0));
  const Occurrences found(tokens, table.size(0));
  const auto distinct = static_cast<int64_t>(found.ids.size());
  const int64_t tasks = (distinct + kDistinct - 1) / kDistinct;
  const auto call =
      backward_call(gy, ids, table, weight, eps, wants_table, found.order.data(), tasks);
  const EmbeddingNormBackward& p = call.params;
  share_tasks(tasks, kDistinct * p.width * 8, [&](int64_t begin, int64_t end) {
    embedding_norm_backward_cpu(p, found.ids.data(), found.starts.data(), distinct, begin, end);
  });
  const Tensor sums = sum_over_batch(call.sums);
  // Results of an operator may not share memory.
  return {call.gtable, sums.select(0, 0).clone(), sums.select(0, 1).clone()};
}

}  // namespace
}  // namespace rwkv::embedding_norm

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "embedding_norm_forward(Tensor ids, Tensor table, Tensor weight, Tensor bias, float eps) -> "
      "Tensor");
  m.def(
      "embedding_norm_backward(Tensor gy, Tensor ids, Tensor table, Tensor weight, float eps, "
      "bool wants_table) -> (Tensor gtable, Tensor gweight, Tensor gbias)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("embedding_norm_forward", &rwkv::embedding_norm::forward);
  m.impl("embedding_norm_backward", &rwkv::embedding_norm::backward);
}
