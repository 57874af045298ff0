// RWKV-7's block: src/rwkv_train/models/rwkv7.py, whose names these are.
#pragma once

#include "bound_block.h"

namespace rwkv::step {

using Wkv7 = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
    const std::optional<Tensor>&, const std::optional<Tensor>&, const std::optional<Tensor>&,
    const std::optional<Tensor>&, const std::optional<Tensor>&, bool, int64_t, int64_t);

// vectors: ln2, k.  matrices: key, value.  Returns the new shift.
inline Tensor plain_channel_mix(BoundBlock& block, const Tensor& shift, double eps) {
  const Tensor x = block.normal(eps);
  const int64_t hidden = block.next_matrix().size(0);
  float* const k = block.product(block.mixed(x, shift));
  squared_relu(block.batch * hidden, k);
  add(block.product(k), block.batch * block.width, block.stream);
  return x;
}

// state: shift, wkv, shift.  carry: the first layer's value, which is made here if undefined.
// vectors: ln1, r, w, k, v, a, g, [v0,] k's base a0, k_k, k_a, w0, r_k, ln_x, then ln2, k.
// matrices: receptance, w1, w2, key, value, [v1, v2,] a1, a2, g1, g2, output.
inline std::vector<Tensor> rwkv7_block(BoundBlock& block, at::TensorList state, Tensor& carry,
                                       Eps eps) {
  static const auto wkv7 = recurrence<Wkv7>("rwkv::wkv7_forward");
  const Tensor x = block.normal(eps[0]);
  const int64_t B = block.batch, H = state[1].size(1), N = state[1].size(2), D = H * N;
  const auto mixed = [&] { return block.mixed(x, state[0]); };
  const float *xr = mixed(), *xw = mixed(), *xk = mixed(), *xv = mixed(), *xa = mixed();
  const float* const xg = mixed();
  const auto numbers = [](const Tensor& tensor) { return tensor.mutable_data_ptr<float>(); };
  const auto sequence = [&](const float* from) {
    const Tensor found = block.tensor({B, 1, H, N});
    if (from != nullptr) block.product(from, numbers(found));
    return found;
  };
  // The first half of a low-rank pair, and the number of its results.
  const auto lowered = [&](const float* from) {
    const int64_t rank = block.next_matrix().size(0);
    return std::pair(block.product(from), B * rank);
  };
  const Tensor r = sequence(xr);
  const auto [decay, decay_rank] = lowered(xw);
  tangent(decay_rank, decay);
  const Tensor w = sequence(decay), k = sequence(xk), v = sequence(xv);
  if (carry.defined()) {
    const float* const logits = block.product(lowered(xv).first);
    const float* const base = block.vector();
    for (int64_t at = 0; at < B * D; at += D) {
      mix_values(carry.const_data_ptr<float>() + at, base, logits + at, D, numbers(v) + at);
    }
  } else {
    carry = v;
  }
  const float* const rate = block.product(lowered(xa).first);
  const auto [low_gate, gate_rank] = lowered(xg);
  sigmoid(gate_rank, low_gate);
  const float* const gate = block.product(low_gate);

  const Tensor a = sequence(nullptr), b = sequence(nullptr);
  const float *base = block.vector(), *removal = block.vector(), *replacement = block.vector();
  for (int64_t n = 0; n < B * H; ++n) {
    const int64_t at = n * N, channel = n % H * N;
    make_keys(rate + at, base + channel, removal + channel, replacement + channel, N,
              numbers(k) + at, numbers(a) + at, numbers(b) + at);
  }
  const Tensor &w0 = block.vector_tensor(), &bonus = block.vector_tensor();
  const auto [y, after, kept, s] = wkv7.call(r, w, k, v, a, b, w0, bonus, std::nullopt, state[1],
                                             std::nullopt, true, 0, 0);
  float* const out = block.head_normal(y, eps[2]);
  add_bonus(numbers(v), numbers(s), gate, B * H, N, out);
  add(block.product(out), B * block.width, block.stream);
  const Tensor shift = plain_channel_mix(block, state[2], eps[1]);
  return {x, after, shift};
}

}  // namespace rwkv::step
