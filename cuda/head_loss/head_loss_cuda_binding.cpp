// Gives the CUDA kernels of the head's loss to the operators that head_loss_ops.cpp defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "head_loss_cuda.h"
#include "head_loss_host.h"

namespace rwkv::head_loss {
namespace {

using at::Tensor;
using std::optional;

// Runs a launcher of head_loss_cuda.h on the device of `like`, on torch's current stream there.
template <typename Params>
void run(const char* op, int (*launcher)(const Params&, void*), const Params& params,
         const Tensor& like) {
  const c10::cuda::CUDAGuard guard(like.device());
  const int code = launcher(params, c10::cuda::getCurrentCUDAStream().stream());
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "and vocabularies below 2^31; got ", like.scalar_type(), " ", like.sizes());
  check_launch(code, op);
}

// Rows of a width that is no multiple of 8 are read one element at a time.
void check_aligned(const Tensor& x, const char* name) {
  const bool fits = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  TORCH_CHECK(fits || x.size(1) % 8 != 0, name, " must start at a multiple of 16 bytes");
}

void rows_on_cuda(const Tensor& logits, const Tensor& targets, const optional<Tensor>& mask,
                  const optional<Tensor>& extra, const optional<Tensor>& extra_gradient,
                  const Tensor& losses, at::ScalarType gradient_dtype, bool wants_gradient) {
  check_aligned(logits, "logits");
  if (extra_gradient.has_value()) check_aligned(*extra_gradient, "extra_gradient");
  const auto call = rows_call(logits, targets, mask, aligned(extra), extra_gradient, losses,
                              gradient_dtype, wants_gradient);
  run("head_loss_rows_", rwkv_head_loss_rows_cuda, call.params, logits);
}

std::tuple<Tensor, Tensor> mean_on_cuda(const Tensor& losses, const optional<Tensor>& mask,
                                        optional<double> total) {
  const auto call = mean_call(losses, mask, total);
  run("head_loss_mean", rwkv_head_loss_mean_cuda, call.params, losses);
  return {call.loss, call.total};
}

}  // namespace
}  // namespace rwkv::head_loss

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("head_loss_rows_", &rwkv::head_loss::rows_on_cuda);
  m.impl("head_loss_mean", &rwkv::head_loss::mean_on_cuda);
}
