// What the torch bindings of all CUDA kernels repeat: alignment, the check of a launch.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <optional>

#include "launch_options.h"

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

inline at::Tensor working_memory(int64_t floats, const at::Tensor& like) {
  return at::empty({floats}, like.options().dtype(at::kFloat));
}

// op: such as "wkv6_forward"
inline void check_launch(int code, const char* op, const at::Tensor& like) {
  TORCH_CHECK(code != kUnsupported, op, ": the CUDA kernels serve float32, bfloat16 and float16, ",
              "head sizes 32, 64, 128 and 256, and states kept every multiple of 16 tokens; got ",
              like.scalar_type(), " ", like.sizes());
  TORCH_CHECK(code == 0, op, ": the CUDA launch failed: ",
              cudaGetErrorString(static_cast<cudaError_t>(code)));
}

}  // namespace rwkv
