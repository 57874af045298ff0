// What the torch bindings of all CUDA kernels repeat: alignment, the check of a launch.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <optional>

#include "../params/launch_options.h"

namespace rwkv {

// Contiguous, and at an address that 16-byte loads can start from: a view may begin anywhere.
inline at::Tensor aligned(const at::Tensor& x) {
  const at::Tensor whole = x.contiguous();
  const bool fits = reinterpret_cast<uintptr_t>(whole.const_data_ptr()) % 16 == 0;
  return fits ? whole : whole.clone();
}

inline std::optional<at::Tensor> aligned(const std::optional<at::Tensor>& x) {
  return x.has_value() ? std::optional<at::Tensor>(aligned(*x)) : std::nullopt;
}

// The kernels take w in fp32 alone.
inline at::Tensor aligned_fp32(const at::Tensor& w) { return aligned(w.to(at::kFloat)); }

// The type in which the kernels write the gradient of w if `wanted` is asked for: fp32 or that of the
// inputs, r and its like.
inline at::ScalarType gw_type_of_kernels(at::ScalarType wanted, const at::Tensor& r) {
  return wanted == r.scalar_type() ? wanted : at::kFloat;
}

// code: what a launcher returned, or CUDA itself; op: such as "wkv6_forward"
inline void check_launch(int code, const char* op) {
  TORCH_CHECK(code == 0, op, ": the CUDA launch failed: ",
              cudaGetErrorString(static_cast<cudaError_t>(code)));
}

inline void check_launch(int code, const char* op, const at::Tensor& like) {
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "head sizes 32, 64, 128 and (on cards with enough shared memory) 256, and states "
              "kept every multiple of 16 tokens (wkv4: every 16); got ",
              like.scalar_type(), " ", like.sizes());
  check_launch(code, op);
}

// Runs a launcher on the device of `like`, on torch's current stream there, with its working
// memory. op: such as "wkv6_forward"; kernel: LaunchOptions::split; floats, launch: as in
// <op>_cuda.h.
template <typename Params, typename Floats, typename Launch>
void run_on_cuda(const char* op, const Params& params, int64_t kernel, const at::Tensor& like,
                 Floats floats, Launch launch) {
  LaunchOptions options;
  options.split = kernel;
  const c10::cuda::CUDAGuard guard(like.device());
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const at::Tensor memory =
      at::empty({floats(params, options)}, like.options().dtype(at::kFloat));
  check_launch(launch(params, options, memory.mutable_data_ptr<float>(), stream.stream()), op,
               like);
}

}  // namespace rwkv
