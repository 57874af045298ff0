// RWKV-4's block: src/rwkv_train/models/rwkv4.py, whose names these are.
#pragma once

#include "bound_block.h"

namespace rwkv::step {

// vectors: ln2, k, r.  matrices: key, receptance, value.  Returns the new shift; also RWKV-5's, 6's.
inline Tensor gated_channel_mix(BoundBlock& block, const Tensor& shift, double eps) {
  const Tensor x = block.normal(eps);
  const float *xk = block.mixed(x, shift), *xr = block.mixed(x, shift);
  const int64_t hidden = block.next_matrix().size(0);
  float* const k = block.product(xk);
  squared_relu(block.batch * hidden, k);
  const float *r = block.product(xr), *v = block.product(k);
  add_gated(v, r, block.batch * block.width, block.stream);
  return x;
}

using Wkv4 = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                                const Tensor&, const std::optional<Tensor>&,
                                                const std::optional<Tensor>&, int64_t, int64_t);

// state: shift, aa, bb, pp, shift.
// vectors: ln1, k, v, r, w, u, then the channel mix's.  matrices: key, value, receptance, output.
inline std::vector<Tensor> rwkv4_block(BoundBlock& block, at::TensorList state, Eps eps) {
  static const auto wkv4 = recurrence<Wkv4>("rwkv::wkv4_forward");
  const Tensor x = block.normal(eps[0]);
  const float *xk = block.mixed(x, state[0]), *xv = block.mixed(x, state[0]);
  const float* const xr = block.mixed(x, state[0]);
  const int64_t B = block.batch, A = state[1].size(1);
  const Tensor k = block.tensor({B, 1, A}), v = block.tensor({B, 1, A});
  block.product(xk, k.mutable_data_ptr<float>());
  block.product(xv, v.mutable_data_ptr<float>());
  const float* const r = block.product(xr);
  const Tensor &w = block.vector_tensor(), &u = block.vector_tensor();
  const Tensor before = at::stack(state.slice(1, 3), 1);  // [B, 3, A]
  const auto [y, after, kept] = wkv4.call(w, u, k, v, before, std::nullopt, 0, 0);
  gate_sigmoid(r, B * A, y.mutable_data_ptr<float>());
  add(block.product(y.const_data_ptr<float>()), B * block.width, block.stream);
  const Tensor shift = gated_channel_mix(block, state[4], eps[1]);
  return {x, after.select(1, 0), after.select(1, 1), after.select(1, 2), shift};
}

}  // namespace rwkv::step
