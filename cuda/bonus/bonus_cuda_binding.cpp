// Gives the CUDA kernels of the bonus's weight to the operators that bonus_ops.cpp defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "bonus_cuda.h"
#include "bonus_host.h"

namespace rwkv {
namespace bonus {

using at::Tensor;
using std::optional;

// Runs a launcher of bonus_cuda.h on the device of r, on torch's current stream there.
template <typename Params>
void run_on_gpu(const char* op, int (*launcher)(const Params&, void*), const Params& params,
                const Tensor& r) {
  const c10::cuda::CUDAGuard guard(r.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int code = launcher(params, stream.stream());
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "and head sizes 32, 64, 128 and 256; got ", r.scalar_type(), " ", r.sizes());
  check_launch(code, op);
}

inline Tensor forward_on_gpu(const Tensor& r, const Tensor& k, const Tensor& weight) {
  const auto call = bonus_forward_call(aligned(r), aligned(k), aligned(weight));
  run_on_gpu("bonus_forward", rwkv_bonus_forward_cuda, call.params, r);
  return call.s;
}

inline std::tuple<Tensor, Tensor, Tensor> backward_on_gpu(
    const Tensor& gs, const optional<Tensor>& gr_carry, const optional<Tensor>& gk_carry,
    const Tensor& r, const Tensor& k, const Tensor& weight) {
  auto call = bonus_backward_call(gs, aligned(gr_carry), aligned(gk_carry), aligned(r), aligned(k),
                                  aligned(weight), kBonusJoinedBlocks);
  const Tensor total = at::empty(call.sums.sizes().slice(1), call.sums.options());
  call.params.total = total.mutable_data_ptr();
  run_on_gpu("bonus_backward", rwkv_bonus_backward_cuda, call.params, r);
  return {call.gr, call.gk, total};
}

}  // namespace bonus
}  // namespace rwkv

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("bonus_forward", &rwkv::bonus::forward_on_gpu);
  m.impl("bonus_backward", &rwkv::bonus::backward_on_gpu);
}
