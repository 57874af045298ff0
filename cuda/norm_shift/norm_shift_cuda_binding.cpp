// Gives the CUDA kernels of norm_shift to the operators that norm_shift_ops.cpp defines.
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../common/torch/cuda_host.h"
#include "norm_shift_cuda.h"
#include "norm_shift_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

// Runs a launcher of norm_shift_cuda.h on the device of x, on torch's current stream there.
template <typename Params>
void launch_norm_shift(const char* op, int (*launcher)(const Params&, void*), const Params& params,
                       const Tensor& x) {
  const c10::cuda::CUDAGuard guard(x.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int code = launcher(params, stream.stream());
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "and widths up to ", kNormShiftWidest, ", or ", kNormShiftWidestOdd,
              " where they are no multiple of 8; got ", x.scalar_type(), " ", x.sizes());
  check_launch(code, op);
}

Tensor launch_norm_shift_backward(const char* op, NormShiftBackwardCall& call, const Tensor& x) {
  const Tensor total = at::empty(call.sums.sizes().slice(1), call.sums.options());
  call.params.total = total.mutable_data_ptr();
  launch_norm_shift(op, rwkv_norm_shift_backward_cuda, call.params, x);
  return total;
}

c10::List<optional<Tensor>> aligned_gradients(const c10::List<optional<Tensor>>& gy) {
  c10::List<optional<Tensor>> whole;
  for (size_t i = 0; i < gy.size(); ++i) whole.push_back(aligned(optional<Tensor>(gy[i])));
  return whole;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>> norm_shift_forward_on_cuda(
    const Tensor& x, const optional<Tensor>& out, const optional<Tensor>& gate,
    const Tensor& weight, const Tensor& bias, const optional<Tensor>& mixes,
    const optional<Tensor>& last, const optional<Tensor>& reset, double eps, at::ScalarType dtype) {
  const auto call = norm_shift_forward_call(
      {aligned(x), aligned(weight), aligned(bias), aligned(mixes), aligned(last), reset,
       std::nullopt, aligned(out), aligned(gate), std::nullopt},
      std::nullopt, eps, dtype);
  launch_norm_shift("norm_shift_forward", rwkv_norm_shift_forward_cuda, call.params, x);
  return {call.stream, call.statistics, call.h_last, norm_shift_stand_in(x, dtype), call.y};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_shift_backward_on_cuda(
    const c10::List<optional<Tensor>>& gy, const optional<Tensor>& gstream,
    const optional<Tensor>& gh_last, const optional<Tensor>& gnormal, const Tensor& stream,
    const Tensor& statistics, const optional<Tensor>& out, const optional<Tensor>& gate,
    const Tensor& weight, const Tensor& bias, const optional<Tensor>& mixes,
    const optional<Tensor>& last, const optional<Tensor>& reset, bool has_out,
    at::ScalarType dtype) {
  auto call = norm_shift_backward_call(
      {aligned_gradients(gy), aligned(gstream), aligned(gh_last), aligned(gnormal)},
      {aligned(stream), aligned(weight), aligned(bias), aligned(mixes), aligned(last), reset,
       std::nullopt, aligned(out), aligned(gate), std::nullopt},
      statistics, has_out, dtype, false, 1);
  const Tensor gvectors = launch_norm_shift_backward("norm_shift_backward", call, stream);
  return {call.gx, call.gout, call.ggate, gvectors, call.glast};
}

void check_whole(const optional<Tensor>& up) {
  TORCH_CHECK(!up.has_value(), "moves must be whole on a GPU: give the product and no `up`");
}

std::vector<Tensor> moved_shift_forward_on_cuda(
    const Tensor& /*normal*/, const Tensor& stream, const Tensor& statistics, const Tensor& weight,
    const Tensor& bias, const Tensor& mixes, const Tensor& moves, const optional<Tensor>& up,
    const optional<Tensor>& last, const optional<Tensor>& reset) {
  check_whole(up);
  const auto call = norm_shift_forward_call(
      {aligned(stream), aligned(weight), aligned(bias), aligned(optional<Tensor>(mixes)),
       aligned(last), reset, aligned(optional<Tensor>(moves)), std::nullopt, std::nullopt,
       std::nullopt},
      statistics, 0, moves.scalar_type());
  launch_norm_shift("moved_shift_forward", rwkv_norm_shift_forward_cuda, call.params, stream);
  return call.y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> moved_shift_backward_on_cuda(
    const c10::List<optional<Tensor>>& gy, const Tensor& stream, const Tensor& statistics,
    const Tensor& weight, const Tensor& bias, const Tensor& mixes, const Tensor& moves,
    const optional<Tensor>& up, const optional<Tensor>& last, const optional<Tensor>& reset) {
  check_whole(up);
  auto call = norm_shift_backward_call(
      {aligned_gradients(gy), std::nullopt, std::nullopt, std::nullopt},
      {aligned(stream), aligned(weight), aligned(bias), aligned(optional<Tensor>(mixes)),
       aligned(last), reset, aligned(optional<Tensor>(moves)), std::nullopt, std::nullopt,
       std::nullopt},
      statistics, false, moves.scalar_type(), true, 1);
  const Tensor gvectors = launch_norm_shift_backward("moved_shift_backward", call, stream);
  return {call.gnormal, gvectors, call.gmoves, call.glast};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("norm_shift_forward", &rwkv::norm_shift_forward_on_cuda);
  m.impl("norm_shift_backward", &rwkv::norm_shift_backward_on_cuda);
  m.impl("moved_shift_forward", &rwkv::moved_shift_forward_on_cuda);
  m.impl("moved_shift_backward", &rwkv::moved_shift_backward_on_cuda);
}
