// Gives the CUDA kernels of WKV-7's pieces to the operator that wkv7_piece_ops.cpp defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "wkv7_piece_cuda.h"
#include "wkv7_piece_host.h"

namespace rwkv::wkv7_piece {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> piece(const Tensor& w, const Tensor& keys, const Tensor& values,
                                 const Tensor& a, const Tensor& b,
                                 const std::optional<Tensor>& base,
                                 const std::optional<Tensor>& reset, bool backwards,
                                 int64_t kernel) {
  const auto call = wkv7_piece_call(aligned_fp32(w), aligned(keys), aligned(values), aligned(a),
                                    aligned(b), aligned(base), reset, backwards);
  run_on_cuda("wkv7_piece", call.params, kernel, keys, rwkv_wkv7_piece_run_floats,
              rwkv_wkv7_piece_run_cuda);
  return {call.transition, call.matrix};
}

}  // namespace
}  // namespace rwkv::wkv7_piece

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) { m.impl("wkv7_piece", &rwkv::wkv7_piece::piece); }
