// Gives the CUDA kernels of the keys to the operators that keys_ops.cpp defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "keys_cuda.h"
#include "keys_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

// Runs a launcher of keys_cuda.h on the device of `key`, on torch's current stream there.
template <typename Params>
void run_keys(const char* op, int (*launcher)(const Params&, void*), const Params& params,
              const Tensor& key) {
  const c10::cuda::CUDAGuard guard(key.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int code = launcher(params, stream.stream());
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "and head sizes 32, 64, 128 and 256; got ", key.scalar_type(), " ", key.sizes());
  check_launch(code, op);
}

std::tuple<Tensor, Tensor, Tensor> keys_forward_on_cuda(const Tensor& key, const Tensor& logits,
                                                        const Tensor& base, const Tensor& removal,
                                                        const Tensor& replacement) {
  const auto call = keys_forward_call(aligned(key), aligned(logits), aligned(base),
                                      aligned(removal), aligned(replacement));
  run_keys("keys_forward", rwkv_keys_forward_cuda, call.params, key);
  return {call.k, call.a, call.b};
}

std::tuple<Tensor, Tensor, Tensor> keys_backward_on_cuda(
    const optional<Tensor>& gk, const optional<Tensor>& ga, const optional<Tensor>& gb,
    const Tensor& key, const Tensor& logits, const Tensor& base, const Tensor& removal,
    const Tensor& replacement) {
  auto call = keys_backward_call(aligned(gk), aligned(ga), aligned(gb), aligned(key),
                                 aligned(logits), aligned(base), aligned(removal),
                                 aligned(replacement), kKeysJoinedBlocks);
  const Tensor total = at::empty(call.sums.sizes().slice(1), call.sums.options());
  call.params.total = total.mutable_data_ptr();
  run_keys("keys_backward", rwkv_keys_backward_cuda, call.params, key);
  return {call.gkey, call.glogits, total};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("keys_forward", &rwkv::keys_forward_on_cuda);
  m.impl("keys_backward", &rwkv::keys_backward_on_cuda);
}
