// The blocks of RWKV-5 and 6: src/rwkv_train/models/rwkv5.py and rwkv6.py, whose names these are.
#pragma once

#include "rwkv4_step.h"

namespace rwkv::step {

using Wkv5_6 = std::tuple<Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
    const std::optional<Tensor>&, const std::optional<Tensor>&, const std::optional<Tensor>&,
    const std::optional<Tensor>&, bool, int64_t, int64_t);

// vectors: ln_x.  matrices: output.  y: [B, 1, H, N]; gate: [B, A].
inline void gated_output(BoundBlock& block, const Tensor& y, const float* gate, double eps) {
  float* const normal = block.head_normal(y, eps);
  gate_silu(gate, y.numel(), normal);
  add(block.product(normal), block.batch * block.width, block.stream);
}

// state: shift, wkv, shift.
// vectors: ln1, r, k, v, g, w, u, ln_x, then the channel mix's.
// matrices: receptance, key, value, gate, output.
inline std::vector<Tensor> rwkv5_block(BoundBlock& block, at::TensorList state, Eps eps) {
  static const auto wkv5 = recurrence<Wkv5_6>("rwkv::wkv5_forward");
  const Tensor x = block.normal(eps[0]);
  const int64_t B = block.batch, H = state[1].size(1), N = state[1].size(2);
  Tensor sequence[3];
  for (Tensor& one : sequence) {
    one = block.tensor({B, 1, H, N});
    block.product(block.mixed(x, state[0]), one.mutable_data_ptr<float>());
  }
  const auto& [r, k, v] = sequence;
  const float* const gate = block.product(block.mixed(x, state[0]));
  const Tensor &w = block.vector_tensor(), &u = block.vector_tensor();
  const auto [y, after, kept] = wkv5.call(r, k, v, w, u, std::nullopt, std::nullopt, state[1],
                                          std::nullopt, true, 0, 0);
  gated_output(block, y, gate, eps[2]);
  return {x, after, gated_channel_mix(block, state[2], eps[1])};
}

// state: shift, wkv, shift.
// vectors: ln1, x, w, k, v, r, g, w0, u, ln_x, then the channel mix's.
// matrices: w1 and the five of w2 of the mixes, of the decay w1 and w2; receptance, key, value,
// gate, output.
inline std::vector<Tensor> rwkv6_block(BoundBlock& block, at::TensorList state, Eps eps) {
  static const auto wkv6 = recurrence<Wkv5_6>("rwkv::wkv6_forward");
  constexpr int kMixes = 5;
  const Tensor x = block.normal(eps[0]);
  const int64_t B = block.batch, H = state[1].size(1), N = state[1].size(2);
  const float* const mixer = block.mixed(x, state[0]);
  const int64_t rank = block.next_matrix().size(0) / kMixes;
  float* const low = block.product(mixer);  // [B, 5 R]
  tangent(B * kMixes * rank, low);
  const float* mixed[kMixes];  // w, k, v, r, g
  for (int n = 0; n < kMixes; ++n) {
    float* const own = block.rows(rank);
    for (int64_t b = 0; b < B; ++b) {
      std::copy_n(low + (b * kMixes + n) * rank, rank, own + b * rank);
    }
    mixed[n] = block.mixed(x, state[0], block.product(own));
  }
  const int64_t decay_rank = block.next_matrix().size(0);
  float* const hidden = block.product(mixed[0]);
  tangent(B * decay_rank, hidden);
  const auto sequence = [&](const float* from) {
    const Tensor found = block.tensor({B, 1, H, N});
    block.product(from, found.mutable_data_ptr<float>());
    return found;
  };
  const Tensor w = sequence(hidden), r = sequence(mixed[3]), k = sequence(mixed[1]);
  const Tensor v = sequence(mixed[2]);
  const float* const gate = block.product(mixed[4]);
  const Tensor &base = block.vector_tensor(), &u = block.vector_tensor();
  const auto [y, after, kept] =
      wkv6.call(r, k, v, w, u, base, std::nullopt, state[1], std::nullopt, true, 0, 0);
  gated_output(block, y, gate, eps[2]);
  return {x, after, gated_channel_mix(block, state[2], eps[1])};
}

}  // namespace rwkv::step
