// RWKV-4's block: src/rwkv_train/models/rwkv4.py, whose names these are.
#pragma once

#include "token_walk.h"

namespace rwkv::step {

// vectors: ln2, k, r.  matrices: key, receptance, value.  Returns the new shift. RWKV-5 and 6 have
// the same.
inline Tensor gated_channel_mix(TokenWalk& walk, const Tensor& shift) {
  const Tensor x = walk.normal();
  const float *xk = walk.mixed(x, shift), *xr = walk.mixed(x, shift);
  const int64_t hidden = walk.next_matrix().size(0);
  float* const k = walk.product(xk);
  squared_relu(walk.batch * hidden, k);
  const float *r = walk.product(xr), *v = walk.product(k);
  add_gated(v, r, walk.batch * walk.width, walk.stream);
  return x;
}

using Wkv4 = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                const Tensor&, const std::optional<Tensor>&,
                                                const std::optional<Tensor>&, int64_t, int64_t);

// state: of one block, shift, aa, bb, pp, shift.
// vectors: ln1, k, v, r, w, u, then the channel mix's.  matrices: key, value, receptance, output.
inline std::vector<Tensor> rwkv4_block(TokenWalk& walk, at::TensorList state) {
  static const auto wkv4 = recurrence<Wkv4>("rwkv::wkv4_forward");
  const Tensor x = walk.normal();
  const float *xk = walk.mixed(x, state[0]), *xv = walk.mixed(x, state[0]);
  const float* const xr = walk.mixed(x, state[0]);
  const int64_t B = walk.batch, A = state[1].size(1);
  const Tensor k = walk.tensor({B, 1, A}), v = walk.tensor({B, 1, A});
  walk.product(xk, k.mutable_data_ptr<float>());
  walk.product(xv, v.mutable_data_ptr<float>());
  const float* const r = walk.product(xr);
  const Tensor &w = walk.vector_tensor(), &u = walk.vector_tensor();
  const Tensor before = at::stack(state.slice(1, 3), 1);  // [B, 3, A]
  const auto [y, after, kept] = wkv4.call(w, u, k, v, before, std::nullopt, 0, 0);
  gate_sigmoid(r, B * A, y.mutable_data_ptr<float>());
  add(walk.product(y.const_data_ptr<float>()), B * walk.width, walk.stream);
  const Tensor shift = gated_channel_mix(walk, state[4]);
  return {x, after.select(1, 0), after.select(1, 1), after.select(1, 2), shift};
}

}  // namespace rwkv::step
