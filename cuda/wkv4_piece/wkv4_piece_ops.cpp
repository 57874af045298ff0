// Schema of the operator for WKV-4's pieces (the contract with src/rwkv_train/ops/pieces/native.py)
// and its host code for the CPU.
//
// kernel: 0 as suits the call, else LaunchOptions::split.
// sums: [B, 3, A], aa, bb and pp after the piece from the empty state.
#include <torch/library.h>

#include "../common/cpu/parallel.h"
#include "wkv4_piece_host.h"

namespace rwkv::wkv4_piece {
namespace {

using at::Tensor;

Tensor piece(const Tensor& w, const Tensor& k, const Tensor& v, const std::optional<Tensor>& reset,
             int64_t kernel) {
  check_cpu_kernel(kernel);
  const auto call = wkv4_piece_call(w, k, v, reset);
  const Wkv4Piece& p = call.params;
  const int64_t groups = (p.width + kWkv4Channels - 1) / kWkv4Channels;
  share_tasks(p.batch * groups, p.time * kWkv4Channels,
              [&](int64_t begin, int64_t end) { wkv4_piece_cpu(p, begin, end); });
  return call.sums;
}

}  // namespace
}  // namespace rwkv::wkv4_piece

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def("wkv4_piece(Tensor w, Tensor k, Tensor v, Tensor? reset, int kernel) -> Tensor");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) { m.impl("wkv4_piece", &rwkv::wkv4_piece::piece); }
