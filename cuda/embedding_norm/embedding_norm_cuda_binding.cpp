// Gives the CUDA kernels of the embedding with its norm to the operators that
// embedding_norm_ops.cpp defines.
#include <ATen/ops/sort.h>
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "embedding_norm_cuda.h"
#include "embedding_norm_host.h"

namespace rwkv::embedding_norm {
namespace {

using at::Tensor;

// Runs a launcher of embedding_norm_cuda.h on the device of the table, on torch's current stream
// there.
template <typename Params>
void run(const char* op, int (*launcher)(const Params&, void*), const Params& params,
         const Tensor& table) {
  const c10::cuda::CUDAGuard guard(table.device());
  const int code = launcher(params, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "and widths of up to 25,000; got ", table.scalar_type(), " ", table.sizes());
  check_launch(code, op);
}

Tensor forward_on_cuda(const Tensor& ids, const Tensor& table, const Tensor& weight,
                       const Tensor& bias, double eps) {
  const auto call = forward_call(ids, aligned(table), aligned(weight), aligned(bias), eps);
  run("embedding_norm_forward", rwkv_embedding_norm_forward_cuda, call.params, table);
  return call.y;
}

std::tuple<Tensor, Tensor, Tensor> backward_on_cuda(const Tensor& gy, const Tensor& ids,
                                                    const Tensor& table, const Tensor& weight,
                                                    double eps, bool wants_table) {
  const c10::cuda::CUDAGuard guard(table.device());
  // 32 bits halve the work of a sort by digits; those of one id must stay in order, or the sums
  // would differ from run to run.
  const auto [sorted, order] = at::sort(ids.flatten().to(at::kInt), std::optional<bool>(true));
  const int64_t n = ids.numel();
  const auto call = backward_call(aligned(gy), ids, aligned(table), aligned(weight), eps,
                                  wants_table, order.const_data_ptr<int64_t>(),
                                  (n + kPlaces - 1) / kPlaces);
  const Tensor blocks = at::empty({2 * ((n + kOccurrences - 1) / kOccurrences), table.size(1)},
                                  weight.options());
  const CudaBackward params{call.params, sorted.const_data_ptr<int32_t>(),
                            blocks.mutable_data_ptr<float>()};
  run("embedding_norm_backward", rwkv_embedding_norm_backward_cuda, params, table);
  // Results of an operator may not share memory.
  return {call.gtable, call.sums.select(1, 0).sum(0), call.sums.select(1, 1).sum(0)};
}

}  // namespace
}  // namespace rwkv::embedding_norm

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("embedding_norm_forward", &rwkv::embedding_norm::forward_on_cuda);
  m.impl("embedding_norm_backward", &rwkv::embedding_norm::backward_on_cuda);
}
