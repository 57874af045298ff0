// Schema of the operator for RWKV-5's and 6's pieces (the contract with
// src/rwkv_train/ops/pieces/native.py) and its host code for the CPU.
//
// kernel: 0 as suits the call, else LaunchOptions::split.
// keys, values: k and v; backwards r and gy.  w: [B, T, H, N], or [H, N] for all tokens alike.
// decay: [B, H, N], the tokens' decays multiplied; backwards, and in rows in which a document
// starts, anything.
// matrix: [B, H, N_value, N_key], the contribution; backwards the gradient of the initial state.
#include <torch/library.h>

#include "../common/cpu/parallel.h"
#include "wkv5_6_piece_host.h"

namespace rwkv::wkv5_6_piece {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> piece(const Tensor& keys, const Tensor& values, const Tensor& w,
                                 const std::optional<Tensor>& base,
                                 const std::optional<Tensor>& reset, bool backwards,
                                 int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call = wkv5_6_piece_call(keys, values, w, base, reset, backwards);
  const Wkv5_6Piece& p = call.params;
  share_tasks(p.batch * p.heads, p.time * p.size * p.size,
              [&](int64_t begin, int64_t end) { wkv5_6_piece_cpu(p, begin, end); });
  return {call.decay, call.matrix};
}

}  // namespace
}  // namespace rwkv::wkv5_6_piece

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "wkv5_6_piece(Tensor keys, Tensor values, Tensor w, Tensor? base, Tensor? reset, "
      "bool backwards, int kernel) -> (Tensor decay, Tensor matrix)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) { m.impl("wkv5_6_piece", &rwkv::wkv5_6_piece::piece); }
