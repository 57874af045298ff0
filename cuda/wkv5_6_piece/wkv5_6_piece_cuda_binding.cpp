// Gives the CUDA kernels of RWKV-5's and 6's pieces to the operator that wkv5_6_piece_ops.cpp
// defines.
#include <torch/library.h>

#include <tuple>

#include "../common/torch/cuda_host.h"
#include "wkv5_6_piece_cuda.h"
#include "wkv5_6_piece_host.h"

namespace rwkv::wkv5_6_piece {
namespace {

using at::Tensor;

// The tokens' decays multiplied, [B, H, N]; p: of the call that has just been prepared.
Tensor decay_of_all(const Tensor& w, const std::optional<Tensor>& base, const Wkv5_6Piece& p) {
  const Tensor based = base.has_value() ? w + *base : w;
  const Tensor log_decay = -at::exp(at::clamp_max(based, kLargestLogRate<float>));
  if (p.decay_per_token) return at::exp(log_decay.sum(1));
  return at::exp(log_decay * p.time).expand({p.batch, p.heads, p.size}).contiguous();
}

std::tuple<Tensor, Tensor> piece(const Tensor& keys, const Tensor& values, const Tensor& w,
                                 const std::optional<Tensor>& base,
                                 const std::optional<Tensor>& reset, bool backwards,
                                 int64_t kernel) {
  const Tensor wide = aligned_fp32(w);
  const auto call = wkv5_6_piece_call(aligned(keys), aligned(values), wide, aligned(base), reset,
                                      backwards);
  run_on_cuda("wkv5_6_piece", call.params, kernel, keys, rwkv_wkv5_6_piece_run_floats,
              rwkv_wkv5_6_piece_run_cuda);
  return {backwards ? call.decay : decay_of_all(wide, base, call.params), call.matrix};
}

}  // namespace
}  // namespace rwkv::wkv5_6_piece

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) { m.impl("wkv5_6_piece", &rwkv::wkv5_6_piece::piece); }
