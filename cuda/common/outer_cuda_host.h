// Torch's side of the CUDA kernels of RWKV-5 and 6.
#pragma once

#include <tuple>

#include "cuda_host.h"
#include "outer_host.h"

namespace rwkv {

using OuterForwardLauncher = int (*)(const OuterForward&, const LaunchOptions&, void*);
using OuterBackwardFloats = int64_t (*)(const OuterBackward&, const LaunchOptions&);
using OuterBackwardLauncher = int (*)(const OuterBackward&, const LaunchOptions&, float*, void*);

template <bool kDecayPerToken, OuterForwardLauncher kLaunch>
std::tuple<at::Tensor, at::Tensor, at::Tensor> outer_forward_on_cuda(
    const at::Tensor& r, const at::Tensor& k, const at::Tensor& v, const at::Tensor& w,
    const at::Tensor& u, const std::optional<at::Tensor>& state,
    const std::optional<at::Tensor>& reset, int64_t keep_every) {
  const auto call = outer_forward_call<kDecayPerToken>(aligned(r), aligned(k), aligned(v),
                                                       aligned_fp32(w), aligned(u), aligned(state),
                                                       reset, keep_every);
  const c10::cuda::CUDAGuard guard(r.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  check_launch(kLaunch(call.params, LaunchOptions(), stream.stream()), "forward", r);
  return {call.y, call.final_state, call.checkpoints};
}

template <bool kDecayPerToken, OuterBackwardFloats kFloats, OuterBackwardLauncher kLaunch>
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
outer_backward_on_cuda(const at::Tensor& gy, const std::optional<at::Tensor>& gfinal_state,
                       const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& w, const at::Tensor& u,
                       const std::optional<at::Tensor>& reset, const at::Tensor& checkpoints,
                       int64_t keep_every) {
  const auto call = outer_backward_call<kDecayPerToken>(
      aligned(gy), aligned(gfinal_state), aligned(r), aligned(k), aligned(v), aligned_fp32(w),
      aligned(u), reset, aligned(checkpoints), keep_every);
  const LaunchOptions options;
  const c10::cuda::CUDAGuard guard(r.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor memory = working_memory(kFloats(call.params, options), r);
  check_launch(kLaunch(call.params, options, memory.mutable_data_ptr<float>(), stream.stream()),
               "backward", r);
  const at::Tensor gw = kDecayPerToken ? call.gw : call.gw.sum(0);
  return {call.gr, call.gk, call.gv, gw.to(w.scalar_type()), call.gu.sum(0), call.gstate};
}

}  // namespace rwkv
