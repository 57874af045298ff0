// Schema of the two passes of AdamW (the contract with src/rwkv_train/ops/adamw/native.py) and
// their host code for the CPU.
//
// adamw_norm: the L2 norm of all gradients, fp64, of no axis.
// adamw_update: parameters and moments in fp32 (fp64) in place; weights: empty, or copies of the
// parameters in another type, written too; steps: fp32 on the CPU, counted up; rates, decays: of
// each parameter; norm: of all gradients, which are clipped to `limit`.
#include <torch/library.h>

#include <atomic>

#include "../common/cpu/parallel.h"
#include "adamw_host.h"

namespace rwkv::adamw {
namespace {

using at::Tensor;
using std::optional;

// run(chunk) for all chunks; threads take the next one when they are done, since most tensors are
// far smaller than a chunk.
template <typename Run> void share_chunks(const AdamwCall& call, Run run) {
  int64_t elements = 0;
  for (const AdamwTensor& tensor : call.tensors) elements += tensor.count;
  // Fewer are not worth waking a thread.
  const int64_t threads = elements < 32768 ? 1 : at::get_num_threads();
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const FlushToZeroGuard flush_to_zero;
    for (int64_t chunk = next++; chunk < call.chunks; chunk = next++) run(chunk);
  });
}

Tensor norm(at::TensorList gradients) {
  const AdamwCall call = adamw_norm_call(gradients);
  std::vector<double> sums(std::max<int64_t>(call.chunks, 1), 0.0);
  share_chunks(call, [&](int64_t chunk) {
    sums[chunk] = adamw_squares_cpu(call.table(call.tensors.data()), chunk);
  });
  for (int64_t stride = 1; stride < call.chunks; stride *= 2) {
    for (int64_t i = 0; i + stride < call.chunks; i += 2 * stride) sums[i] += sums[i + stride];
  }
  const Tensor result = at::empty({}, gradients[0].options().dtype(at::kDouble));
  *result.mutable_data_ptr<double>() = std::sqrt(sums[0]);
  return result;
}

void update(at::TensorList parameters, at::TensorList gradients, at::TensorList exp_avgs,
                  at::TensorList exp_avg_sqs, at::TensorList weights, at::TensorList steps,
                  at::ArrayRef<double> rates, at::ArrayRef<double> decays, double beta1,
                  double beta2, double eps, const optional<Tensor>& norm_of_all, double limit) {
  const AdamwGiven given = {parameters, gradients, exp_avgs, exp_avg_sqs, weights, steps,
                            rates,      decays,    beta1,    beta2,       eps};
  const AdamwCall call = adamw_update_call(given);
  const AdamwUpdate params =
      adamw_update_params(given, call.table(call.tensors.data()), norm_of_all, limit);
  share_chunks(call, [&](int64_t chunk) { adamw_update_cpu(params, chunk); });
}

}  // namespace
}  // namespace rwkv::adamw

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def("adamw_norm(Tensor[] gradients) -> Tensor");
  m.def(
      "adamw_update(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] weights, Tensor(e!)[] steps, float[] rates, "
      "float[] decays, float beta1, float beta2, float eps, Tensor? norm, float limit) -> ()");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("adamw_norm", &rwkv::adamw::norm);
  m.impl("adamw_update", &rwkv::adamw::update);
}
