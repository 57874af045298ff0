// RWKV-7's block: src/rwkv_train/models/rwkv7.py, whose names these are.
#pragma once

#include "token_walk.h"

namespace rwkv::step {

// vectors: ln2, k.  matrices: key, value.  Returns the new shift.
inline Tensor plain_channel_mix(TokenWalk& walk, const Tensor& shift) {
  const Tensor x = walk.normal();
  const int64_t hidden = walk.next_matrix().size(0);
  float* const k = walk.product(walk.mixed(x, shift));
  squared_relu(walk.batch * hidden, k);
  add(walk.product(k), walk.batch * walk.width, walk.stream);
  return x;
}

// state: shift, wkv, shift.
// vectors: ln1, r, w, k, v, a, g, [v0,] a0, k_k, k_a, w0, r_k, ln_x, then ln2, k.
// In brackets: but in the first block.
// matrices: receptance, w1, w2, key, value, [v1, v2,] a1, a2, g1, g2, output.
inline std::vector<Tensor> rwkv7_block(TokenWalk& walk, at::TensorList state) {
  const Tensor x = walk.normal();
  const int64_t B = walk.batch, H = state[1].size(1), N = state[1].size(2), D = H * N;
  const auto mixed = [&] { return walk.mixed(x, state[0]); };
  const float *xr = mixed(), *xw = mixed(), *xk = mixed(), *xv = mixed(), *xa = mixed();
  const float* const xg = mixed();
  const auto numbers = [](const Tensor& tensor) { return tensor.mutable_data_ptr<float>(); };
  const auto sequence = [&](const float* from) {
    const Tensor found = walk.tensor({B, 1, H, N});
    if (from != nullptr) walk.product(from, numbers(found));
    return found;
  };
  // The first half of a low-rank pair, and the number of its results.
  const auto lowered = [&](const float* from) {
    const int64_t rank = walk.next_matrix().size(0);
    return std::pair(walk.product(from), B * rank);
  };
  const Tensor r = sequence(xr);
  const auto [decay, decay_rank] = lowered(xw);
  tangent(decay_rank, decay);
  const Tensor w = sequence(decay), k = sequence(xk), v = sequence(xv);
  if (walk.first_value.defined()) {
    const float* const logits = walk.product(lowered(xv).first);
    const float *base = walk.vector(), *first = walk.first_value.const_data_ptr<float>();
    for (int64_t at = 0; at < B * D; at += D) {
      mix_values(first + at, base, logits + at, D, numbers(v) + at);
    }
  } else {
    walk.first_value = v;
  }
  const float* const rate = walk.product(lowered(xa).first);
  const auto [low_gate, gate_rank] = lowered(xg);
  sigmoid(gate_rank, low_gate);
  const float* const gate = walk.product(low_gate);

  const Tensor a = sequence(nullptr), b = sequence(nullptr);
  const float *base = walk.vector(), *removal = walk.vector(), *replacement = walk.vector();
  for (int64_t n = 0; n < B * H; ++n) {
    const int64_t at = n * N, channel = n % H * N;
    make_keys(rate + at, base + channel, removal + channel, replacement + channel, N,
              numbers(k) + at, numbers(a) + at, numbers(b) + at);
  }
  const float *w0 = walk.vector(), *bonus = walk.vector();
  const float* const before = state[1].const_data_ptr<float>();
  const Tensor y = sequence(nullptr), after = walk.tensor({B, H, N, N});
  float *const s = walk.rows(H), *const forgotten = walk.rows(D);
  share_tasks(B * H, 8 * N * N, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t at = n * N, channel = n % H * N, matrix = n * N * N;
      s[n] = wkv7_head(numbers(r) + at, numbers(w) + at, w0 + channel, numbers(k) + at,
                       numbers(v) + at, numbers(a) + at, numbers(b) + at, bonus + channel,
                       before + matrix, N, forgotten + at, numbers(after) + matrix,
                       numbers(y) + at);
    }
  });
  float* const out = walk.head_normal(y);
  add_bonus(numbers(v), s, gate, B * H, N, out);
  add(walk.product(out), B * walk.width, walk.stream);
  const Tensor shift = plain_channel_mix(walk, state[2]);
  return {x, after, shift};
}

}  // namespace rwkv::step
