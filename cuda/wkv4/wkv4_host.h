// Host side of WKV-4, the same for every device: checks the arguments, makes them contiguous,
// allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/check.h"
#include "wkv4.h"

namespace rwkv {

struct Wkv4ForwardCall {
  at::Tensor w, u, k, v, state, reset;  // contiguous; undefined where absent
  at::Tensor y, final_state, checkpoints;
  Wkv4Forward params;
};

struct Wkv4BackwardCall {
  at::Tensor gy, gfinal_state, w, u, k, v, reset, checkpoints;
  at::Tensor gw, gu, gk, gv, gstate;  // gw and gu per batch row
  Wkv4Backward params;
};

// checkpoint_interval: 0 keeps no states.
inline Wkv4Sizes wkv4_sizes(const at::Tensor& w, const at::Tensor& u, const at::Tensor& k,
                            const at::Tensor& v, const std::optional<at::Tensor>& reset,
                            int64_t checkpoint_interval) {
  TORCH_CHECK(k.dim() == 3 && k.numel() > 0, "k must be [B, T, A], no axis empty, got ", k.sizes());
  TORCH_CHECK(checkpoint_interval >= 0 && checkpoint_interval % kWkv4Tokens == 0,
              "checkpoint_interval must be 0 or a multiple of ", kWkv4Tokens, ", got ",
              checkpoint_interval);
  const int64_t B = k.size(0), T = k.size(1), A = k.size(2);
  CHECK_SHAPE(v, B, T, A);
  CHECK_LIKE(v, k);
  CHECK_SHAPE(w, A);
  CHECK_DTYPE(w, computing_type(k));
  CHECK_SHAPE(u, A);
  CHECK_DTYPE(u, computing_type(k));
  if (reset.has_value()) {
    check_shape(*reset, "reset", "B, T", {B, T});
    check_dtype(*reset, "reset", at::kBool);
  }
  const int64_t kept =
      checkpoint_interval == 0 ? 0 : (T + checkpoint_interval - 1) / checkpoint_interval;
  return {B, T, A, checkpoint_interval == 0 ? T : checkpoint_interval, kept, dtype_of(k, "k")};
}

inline void check_wkv4_state(const std::optional<at::Tensor>& state, const char* name,
                             const Wkv4Sizes& p, const at::Tensor& k) {
  if (!state.has_value()) return;
  check_shape(*state, name, "B, 3, A", {p.batch, 3, p.width});
  check_dtype(*state, name, computing_type(k));
}

inline Wkv4ForwardCall wkv4_forward_call(const at::Tensor& w, const at::Tensor& u,
                                         const at::Tensor& k, const at::Tensor& v,
                                         const std::optional<at::Tensor>& state,
                                         const std::optional<at::Tensor>& reset,
                                         int64_t checkpoint_interval) {
  const Wkv4Sizes sizes = wkv4_sizes(w, u, k, v, reset, checkpoint_interval);
  check_wkv4_state(state, "state", sizes, k);
  const auto computing = k.options().dtype(computing_type(k));
  // The call owns what contiguous() may have copied until the kernels have run. Results are not
  // initialised: the kernels write every element.
  Wkv4ForwardCall c{w.contiguous(), u.contiguous(), k.contiguous(), v.contiguous(),
                    contiguous_or_undefined(state), contiguous_or_undefined(reset),
                    at::empty(k.sizes(), k.options()),
                    at::empty({sizes.batch, 3, sizes.width}, computing),
                    at::empty({sizes.batch, sizes.kept, 3, sizes.width}, computing), {}};
  Wkv4Forward& p = c.params;
  static_cast<Wkv4Sizes&>(p) = sizes;
  p.w = c.w.const_data_ptr(), p.u = c.u.const_data_ptr();
  p.k = c.k.const_data_ptr(), p.v = c.v.const_data_ptr();
  p.state = data_or_null(c.state);
  p.reset = static_cast<const bool*>(data_or_null(c.reset));
  p.y = c.y.mutable_data_ptr(), p.final_state = c.final_state.mutable_data_ptr();
  // Null, since a tensor without elements has an address of its own.
  p.checkpoints = sizes.kept > 0 ? c.checkpoints.mutable_data_ptr() : nullptr;
  return c;
}

inline Wkv4BackwardCall wkv4_backward_call(const at::Tensor& gy,
                                           const std::optional<at::Tensor>& gfinal_state,
                                           const at::Tensor& w, const at::Tensor& u,
                                           const at::Tensor& k, const at::Tensor& v,
                                           const std::optional<at::Tensor>& reset,
                                           const at::Tensor& checkpoints,
                                           int64_t checkpoint_interval) {
  const Wkv4Sizes sizes = wkv4_sizes(w, u, k, v, reset, checkpoint_interval);
  TORCH_CHECK(checkpoint_interval > 0,
              "backward needs the states that forward keeps with checkpoint_interval > 0");
  const int64_t B = sizes.batch, T = sizes.time, A = sizes.width;
  CHECK_SHAPE(gy, B, T, A);
  CHECK_LIKE(gy, k);
  check_shape(checkpoints, "checkpoints", "B, kept, 3, A", {B, sizes.kept, 3, A});
  CHECK_DTYPE(checkpoints, computing_type(k));
  check_wkv4_state(gfinal_state, "gfinal_state", sizes, k);
  const auto computing = k.options().dtype(computing_type(k));
  Wkv4BackwardCall c{gy.contiguous(), contiguous_or_undefined(gfinal_state), w.contiguous(),
                     u.contiguous(), k.contiguous(), v.contiguous(),
                     contiguous_or_undefined(reset), checkpoints.contiguous(),
                     at::empty({B, A}, computing), at::empty({B, A}, computing),
                     at::empty(k.sizes(), k.options()), at::empty(k.sizes(), k.options()),
                     at::empty({B, 3, A}, computing), {}};
  Wkv4Backward& p = c.params;
  static_cast<Wkv4Sizes&>(p) = sizes;
  p.w = c.w.const_data_ptr(), p.u = c.u.const_data_ptr();
  p.k = c.k.const_data_ptr(), p.v = c.v.const_data_ptr();
  p.reset = static_cast<const bool*>(data_or_null(c.reset));
  p.checkpoints = c.checkpoints.const_data_ptr();
  p.gy = c.gy.const_data_ptr(), p.gfinal_state = data_or_null(c.gfinal_state);
  p.gw = c.gw.mutable_data_ptr(), p.gu = c.gu.mutable_data_ptr();
  p.gk = c.gk.mutable_data_ptr(), p.gv = c.gv.mutable_data_ptr();
  p.gstate = c.gstate.mutable_data_ptr();
  return c;
}

}  // namespace rwkv
