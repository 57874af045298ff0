// Schema of the operator for WKV-7's pieces (the contract with src/rwkv_train/ops/pieces/native.py)
// and its host code for the CPU.
//
// kernel: 0 as suits the call, else LaunchOptions::split.
// keys, values: k and v; backwards r and gy.
// transition: [B, H, N_key, N_key], anything in rows in which a document starts; backwards without
// elements.
// matrix: [B, H, N_value, N_key], the contribution; backwards the gradient of the initial state.
#include <torch/library.h>

#include "../common/cpu/parallel.h"
#include "wkv7_piece_host.h"

namespace rwkv::wkv7_piece {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> piece(const Tensor& w, const Tensor& keys, const Tensor& values,
                                 const Tensor& a, const Tensor& b,
                                 const std::optional<Tensor>& base,
                                 const std::optional<Tensor>& reset, bool backwards,
                                 int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call = wkv7_piece_call(w, keys, values, a, b, base, reset, backwards);
  const Wkv7Piece& p = call.params;
  share_tasks(p.batch * p.heads, p.time * p.size * p.size,
              [&](int64_t begin, int64_t end) { wkv7_piece_cpu(p, begin, end); });
  return {call.transition, call.matrix};
}

}  // namespace
}  // namespace rwkv::wkv7_piece

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "wkv7_piece(Tensor w, Tensor keys, Tensor values, Tensor a, Tensor b, Tensor? base, "
      "Tensor? reset, bool backwards, int kernel) -> (Tensor transition, Tensor matrix)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) { m.impl("wkv7_piece", &rwkv::wkv7_piece::piece); }
