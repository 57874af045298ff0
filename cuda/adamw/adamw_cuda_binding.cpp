// Gives the CUDA kernels of AdamW to the operators that adamw_ops.cpp defines.
#include <torch/library.h>

#include <cstring>

#include "../common/torch/cuda_host.h"
#include "adamw_cuda.h"
#include "adamw_host.h"

namespace rwkv::adamw {
namespace {

using at::Tensor;
using std::optional;

// The table of a call on the device. From pinned memory, so that nothing waits for the copy; torch
// gives that memory to nobody else before the copy is done.
Tensor table_on_device(const AdamwCall& call, const Tensor& like) {
  const auto bytes = static_cast<int64_t>(call.tensors.size() * sizeof(AdamwTensor));
  const Tensor pinned =
      at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
  std::memcpy(pinned.mutable_data_ptr(), call.tensors.data(), static_cast<size_t>(bytes));
  return pinned.to(like.device(), /*non_blocking=*/true);
}

void refuse_fp64(const AdamwCall& call) {
  for (const AdamwTensor& tensor : call.tensors) {
    TORCH_CHECK(tensor.gradient_dtype != DType::kDouble && tensor.dtype != DType::kDouble,
                "the CUDA kernels of adamw serve float32, bfloat16 and float16, got float64");
  }
}

Tensor norm(at::TensorList gradients) {
  const AdamwCall call = adamw_norm_call(gradients);
  refuse_fp64(call);
  const c10::cuda::CUDAGuard guard(gradients[0].device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Tensor table = table_on_device(call, gradients[0]);
  const auto numbers = gradients[0].options().dtype(at::kDouble);
  const Tensor squares = at::empty({call.chunks}, numbers), result = at::empty({}, numbers);
  const AdamwNorm params = {call.table(static_cast<const AdamwTensor*>(table.const_data_ptr())),
                            squares.mutable_data_ptr<double>(), result.mutable_data_ptr<double>()};
  check_launch(rwkv_adamw_norm_cuda(params, stream.stream()), "adamw_norm");
  return result;
}

void update(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs,
            at::TensorList exp_avg_sqs, at::TensorList weights, at::TensorList steps,
            at::ArrayRef<double> rates, at::ArrayRef<double> decays, double beta1, double beta2,
            double eps, const optional<Tensor>& norm_of_all, double limit) {
  const AdamwGiven given = {parameters, gradients, exp_avgs, exp_avg_sqs, weights, steps,
                            rates,      decays,    beta1,    beta2,       eps};
  const AdamwCall call = adamw_update_call(given);
  if (call.tensors.empty()) return;
  refuse_fp64(call);
  const c10::cuda::CUDAGuard guard(parameters[0].device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const Tensor table = table_on_device(call, parameters[0]);
  const AdamwUpdate params = adamw_update_params(
      given, call.table(static_cast<const AdamwTensor*>(table.const_data_ptr())), norm_of_all,
      limit);
  check_launch(rwkv_adamw_update_cuda(params, stream.stream()), "adamw_update");
}

}  // namespace
}  // namespace rwkv::adamw

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("adamw_norm", &rwkv::adamw::norm);
  m.impl("adamw_update", &rwkv::adamw::update);
}
