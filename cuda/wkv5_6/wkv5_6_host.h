// Host side of RWKV-5 and 6, the same for every device: checks the arguments, makes them
// contiguous, allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/head_host.h"
#include "wkv5_6_params.h"

namespace rwkv {

struct Wkv5_6ForwardCall {
  at::Tensor r, k, v, w, u, base, state, reset;  // contiguous; undefined where absent
  at::Tensor y, final_state, checkpoints;
  Wkv5_6Forward params;
};

struct Wkv5_6BackwardCall {
  at::Tensor gy, gfinal_state, r, k, v, w, u, base, reset, checkpoints;
  at::Tensor gr, gk, gv, gw, gu, gbase, gstate;  // gu, gbase (RWKV-5: and gw) per batch row
  Wkv5_6Backward params;
};

template <bool kDecayPerToken>
HeadSizes wkv5_6_sizes(const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& w, const at::Tensor& u,
                       const std::optional<at::Tensor>& base,
                       const std::optional<at::Tensor>& reset, int64_t checkpoint_interval) {
  const HeadSizes sizes = head_sizes(r, w, reset, checkpoint_interval);
  const int64_t B = sizes.batch, T = sizes.time, H = sizes.heads, N = sizes.size;
  CHECK_SHAPE(k, B, T, H, N);
  CHECK_SHAPE(v, B, T, H, N);
  // Not w, which may stay in fp32 where the other inputs come in 16 bit.
  CHECK_LIKE(k, r);
  CHECK_LIKE(v, r);
  if (kDecayPerToken) CHECK_SHAPE(w, B, T, H, N);
  else CHECK_SHAPE(w, H, N);
  CHECK_SHAPE(u, H, N);
  CHECK_DTYPE(u, computing_type(r));
  TORCH_CHECK(kDecayPerToken || !base.has_value(), "wkv5 has no base besides w");
  check_row(base, "base", sizes, r);
  return sizes;
}

template <bool kDecayPerToken>
Wkv5_6ForwardCall wkv5_6_forward_call(const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& w, const at::Tensor& u,
                                      const std::optional<at::Tensor>& base,
                                      const std::optional<at::Tensor>& state,
                                      const std::optional<at::Tensor>& reset,
                                      bool with_final_state, int64_t checkpoint_interval) {
  const HeadSizes sizes =
      wkv5_6_sizes<kDecayPerToken>(r, k, v, w, u, base, reset, checkpoint_interval);
  check_state(state, "state", sizes, r);
  // The call owns what contiguous() may have copied until the kernels have run. Results are not
  // initialised: the kernels write every element.
  Wkv5_6ForwardCall c{r.contiguous(),
                      k.contiguous(),
                      v.contiguous(),
                      w.contiguous(),
                      u.contiguous(),
                      contiguous_or_undefined(base),
                      contiguous_or_undefined(state),
                      contiguous_or_undefined(reset),
                      at::empty(r.sizes(), r.options()),
                      if_wanted(with_final_state, empty_state(sizes, r)),
                      empty_checkpoints(sizes, r),
                      {}};
  Wkv5_6Forward& p = c.params;
  static_cast<HeadSizes&>(p) = sizes;
  p.r = c.r.const_data_ptr(), p.k = c.k.const_data_ptr(), p.v = c.v.const_data_ptr();
  p.w = c.w.const_data_ptr(), p.u = c.u.const_data_ptr();
  p.base = data_or_null(c.base), p.state = data_or_null(c.state);
  p.reset = static_cast<const bool*>(data_or_null(c.reset));
  p.y = c.y.mutable_data_ptr();
  // Null, since a tensor without elements has an address of its own.
  p.final_state = with_final_state ? c.final_state.mutable_data_ptr() : nullptr;
  p.checkpoints = sizes.kept > 0 ? c.checkpoints.mutable_data_ptr() : nullptr;
  return c;
}

template <bool kDecayPerToken> Wkv5_6BackwardCall wkv5_6_backward_call(
    const at::Tensor& gy, const std::optional<at::Tensor>& gfinal_state, const at::Tensor& r,
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& w, const at::Tensor& u,
    const std::optional<at::Tensor>& base, const std::optional<at::Tensor>& reset,
    const at::Tensor& checkpoints, bool with_gstate, at::ScalarType gw_dtype,
    int64_t checkpoint_interval) {
  HeadSizes sizes =
      wkv5_6_sizes<kDecayPerToken>(r, k, v, w, u, base, reset, checkpoint_interval);
  if (kDecayPerToken) sizes.gw_dtype = dtype_of(gw_dtype, "gw");
  const int64_t B = sizes.batch, T = sizes.time, H = sizes.heads, N = sizes.size;
  CHECK_SHAPE(gy, B, T, H, N);
  CHECK_LIKE(gy, r);
  check_checkpoints(checkpoints, sizes, r);
  check_state(gfinal_state, "gfinal_state", sizes, r);
  Wkv5_6BackwardCall c{
      gy.contiguous(),
      contiguous_or_undefined(gfinal_state),
      r.contiguous(),
      k.contiguous(),
      v.contiguous(),
      w.contiguous(),
      u.contiguous(),
      contiguous_or_undefined(base),
      contiguous_or_undefined(reset),
      checkpoints.contiguous(),
      at::empty(r.sizes(), r.options()),
      at::empty(r.sizes(), r.options()),
      at::empty(r.sizes(), r.options()),
      kDecayPerToken ? at::empty(w.sizes(), w.options().dtype(gw_dtype)) : empty_rows(sizes, r),
      empty_rows(sizes, r),
      empty_rows(sizes, r),
      empty_state(sizes, r),
      {}};
  Wkv5_6Backward& p = c.params;
  static_cast<HeadSizes&>(p) = sizes;
  p.r = c.r.const_data_ptr(), p.k = c.k.const_data_ptr(), p.v = c.v.const_data_ptr();
  p.w = c.w.const_data_ptr(), p.u = c.u.const_data_ptr();
  p.base = data_or_null(c.base);
  p.reset = static_cast<const bool*>(data_or_null(c.reset));
  p.checkpoints = c.checkpoints.const_data_ptr();
  p.gy = c.gy.const_data_ptr(), p.gfinal_state = data_or_null(c.gfinal_state);
  p.gr = c.gr.mutable_data_ptr(), p.gk = c.gk.mutable_data_ptr();
  p.gv = c.gv.mutable_data_ptr(), p.gw = c.gw.mutable_data_ptr();
  p.gu = c.gu.mutable_data_ptr(), p.gbase = c.gbase.mutable_data_ptr();
  p.gstate = c.gstate.mutable_data_ptr(), p.with_gstate = with_gstate;
  return c;
}

}  // namespace rwkv
