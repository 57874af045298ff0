// Gives the CUDA kernels of WKV-4's pieces to the operator that wkv4_piece_ops.cpp defines.
#include <torch/library.h>

#include "../common/torch/cuda_host.h"
#include "wkv4_piece_cuda.h"
#include "wkv4_piece_host.h"

namespace rwkv::wkv4_piece {
namespace {

using at::Tensor;

Tensor piece(const Tensor& w, const Tensor& k, const Tensor& v, const std::optional<Tensor>& reset,
             int64_t kernel) {
  const auto call = wkv4_piece_call(w, aligned(k), aligned(v), reset);
  run_on_cuda("wkv4_piece", call.params, kernel, k, rwkv_wkv4_piece_run_floats,
              rwkv_wkv4_piece_run_cuda);
  return call.sums;
}

}  // namespace
}  // namespace rwkv::wkv4_piece

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) { m.impl("wkv4_piece", &rwkv::wkv4_piece::piece); }
