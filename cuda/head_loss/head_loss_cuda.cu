// CUDA kernels of the head's loss: launches, reports.
#include "head_loss_cuda.h"

#include "head_loss_mean.cuh"
#include "head_loss_rows.cuh"

namespace rwkv::head_loss {
namespace {

constexpr int kExchangeBytes = 3 * kWarps * static_cast<int>(sizeof(float));
// Of a row's logits. Two such rows a multiprocessor are what large cards have as second-level cache.
constexpr int64_t kShortRow = 128 * 1024;

// Rows are worked through one after the other by as many blocks as leave the rows that are in work
// in the second-level cache.
int64_t blocks_for(const HeadLossRows& p) {
  const bool fits = p.vocabulary * element_bytes(p.dtype) <= kShortRow;
  const int64_t most = int64_t{multiprocessors()} * (fits ? 2 : 1);
  return p.rows < most ? p.rows : most;
}

}  // namespace
}  // namespace rwkv::head_loss

int rwkv_head_loss_rows_cuda(const rwkv::HeadLossRows& params, void* stream) {
  using namespace rwkv;
  // A step beyond the last logit must still have a number.
  if (params.dtype == DType::kDouble || params.vocabulary > INT32_MAX - head_loss::kStride) {
    return kUnsupported;
  }
  const auto kernel = params.vocabulary % kVec8 == 0 ? head_loss::rows_kernel<true>
                                                     : head_loss::rows_kernel<false>;
  return launch(kernel, head_loss::blocks_for(params), head_loss::kThreads,
                head_loss::kExchangeBytes, stream, params);
}

int rwkv_head_loss_mean_cuda(const rwkv::HeadLossMean& params, void* stream) {
  using namespace rwkv;
  if (params.gradient_dtype == DType::kDouble) return kUnsupported;
  return launch(head_loss::mean_kernel, 1, head_loss::kMeanThreads, 0, stream, params);
}
