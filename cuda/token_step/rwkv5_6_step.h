// The blocks of RWKV-5 and 6: src/rwkv_train/models/rwkv5.py and rwkv6.py, whose names these are.
#pragma once

#include "rwkv4_step.h"

namespace rwkv::step {

using Wkv5_6 = std::tuple<Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
    const std::optional<Tensor>&, const std::optional<Tensor>&, const std::optional<Tensor>&,
    const std::optional<Tensor>&, bool, int64_t, int64_t);

// vectors: ln_x.  matrices: output.  y: [B, 1, H, N]; gate: [B, A].
inline void gated_output(TokenWalk& walk, const Tensor& y, const float* gate) {
  float* const normal = walk.head_normal(y);
  gate_silu(gate, y.numel(), normal);
  add(walk.product(normal), walk.batch * walk.width, walk.stream);
}

// state: shift, wkv, shift.
// vectors: ln1, r, k, v, g, w, u, ln_x, then the channel mix's.
// matrices: receptance, key, value, gate, output.
inline std::vector<Tensor> rwkv5_block(TokenWalk& walk, at::TensorList state) {
  static const auto wkv5 = recurrence<Wkv5_6>("rwkv::wkv5_forward");
  const Tensor x = walk.normal();
  const int64_t B = walk.batch, H = state[1].size(1), N = state[1].size(2);
  Tensor sequence[3];
  for (Tensor& one : sequence) {
    one = walk.tensor({B, 1, H, N});
    walk.product(walk.mixed(x, state[0]), one.mutable_data_ptr<float>());
  }
  const auto& [r, k, v] = sequence;
  const float* const gate = walk.product(walk.mixed(x, state[0]));
  const Tensor &w = walk.vector_tensor(), &u = walk.vector_tensor();
  const auto [y, after, kept] = wkv5.call(r, k, v, w, u, std::nullopt, std::nullopt, state[1],
                                          std::nullopt, true, 0, 0);
  gated_output(walk, y, gate);
  return {x, after, gated_channel_mix(walk, state[2])};
}

// state: shift, wkv, shift.
// vectors: ln1, x, w, k, v, r, g, w0, u, ln_x, then the channel mix's.
// matrices: w1 and the five of w2 of the mixes, of the decay w1 and w2; receptance, key, value,
// gate, output.
inline std::vector<Tensor> rwkv6_block(TokenWalk& walk, at::TensorList state) {
  static const auto wkv6 = recurrence<Wkv5_6>("rwkv::wkv6_forward");
  constexpr int kMixes = 5;
  const Tensor x = walk.normal();
  const int64_t B = walk.batch, H = state[1].size(1), N = state[1].size(2);
  const float* const mixer = walk.mixed(x, state[0]);
  const int64_t rank = walk.next_matrix().size(0) / kMixes;
  float* const low = walk.product(mixer);  // [B, 5 R]
  tangent(B * kMixes * rank, low);
  const float* mixed[kMixes];  // w, k, v, r, g
  for (int n = 0; n < kMixes; ++n) {
    float* const own = walk.rows(rank);
    for (int64_t b = 0; b < B; ++b) {
      std::copy_n(low + (b * kMixes + n) * rank, rank, own + b * rank);
    }
    mixed[n] = walk.mixed(x, state[0], walk.product(own));
  }
  const int64_t decay_rank = walk.next_matrix().size(0);
  float* const hidden = walk.product(mixed[0]);
  tangent(B * decay_rank, hidden);
  const auto sequence = [&](const float* from) {
    const Tensor found = walk.tensor({B, 1, H, N});
    walk.product(from, found.mutable_data_ptr<float>());
    return found;
  };
  const Tensor w = sequence(hidden), r = sequence(mixed[3]), k = sequence(mixed[1]);
  const Tensor v = sequence(mixed[2]);
  const float* const gate = walk.product(mixed[4]);
  const Tensor &base = walk.vector_tensor(), &u = walk.vector_tensor();
  const auto [y, after, kept] =
      wkv6.call(r, k, v, w, u, base, std::nullopt, state[1], std::nullopt, true, 0, 0);
  gated_output(walk, y, gate);
  return {x, after, gated_channel_mix(walk, state[2])};
}

}  // namespace rwkv::step
