// Host side of WKV-7, the same for every device: checks the arguments, makes them contiguous,
// allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/head_host.h"
#include "wkv7.h"

namespace rwkv {

struct Wkv7ForwardCall {
  at::Tensor r, w, k, v, a, b, base, bonus, state, reset;  // contiguous; undefined where absent
  at::Tensor y, final_state, checkpoints, s;
  Wkv7Forward params;
};

struct Wkv7BackwardCall {
  at::Tensor gy, gfinal_state, gs, r, w, k, v, a, b, base, bonus, reset, checkpoints;
  at::Tensor gr, gw, gk, gv, ga, gb, gbase, gbonus, gstate;  // gbase, gbonus per batch row
  Wkv7Backward params;
};

inline HeadSizes wkv7_sizes(const at::Tensor& r, const at::Tensor& w, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& a, const at::Tensor& b,
                            const std::optional<at::Tensor>& base,
                            const std::optional<at::Tensor>& bonus,
                            const std::optional<at::Tensor>& reset, int64_t checkpoint_interval) {
  const HeadSizes sizes = head_sizes(r, w, reset, checkpoint_interval);
  const int64_t B = sizes.batch, T = sizes.time, H = sizes.heads, N = sizes.size;
  CHECK_SHAPE(w, B, T, H, N);
  CHECK_SHAPE(k, B, T, H, N);
  CHECK_SHAPE(v, B, T, H, N);
  CHECK_SHAPE(a, B, T, H, N);
  CHECK_SHAPE(b, B, T, H, N);
  // Not w, which may stay in fp32 where the other inputs come in 16 bit.
  CHECK_LIKE(k, r);
  CHECK_LIKE(v, r);
  CHECK_LIKE(a, r);
  CHECK_LIKE(b, r);
  check_row(base, "base", sizes, r);
  check_row(bonus, "bonus", sizes, r);
  return sizes;
}

inline Wkv7ForwardCall wkv7_forward_call(const at::Tensor& r, const at::Tensor& w,
                                         const at::Tensor& k, const at::Tensor& v,
                                         const at::Tensor& a, const at::Tensor& b,
                                         const std::optional<at::Tensor>& base,
                                         const std::optional<at::Tensor>& bonus,
                                         const std::optional<at::Tensor>& state,
                                         const std::optional<at::Tensor>& reset,
                                         bool with_final_state, int64_t checkpoint_interval) {
  const HeadSizes sizes = wkv7_sizes(r, w, k, v, a, b, base, bonus, reset, checkpoint_interval);
  check_state(state, "state", sizes, r);
  // The call owns what contiguous() may have copied until the kernels have run. Results are not
  // initialised: the kernels write every element.
  Wkv7ForwardCall c{r.contiguous(), w.contiguous(), k.contiguous(), v.contiguous(),
                    a.contiguous(), b.contiguous(), contiguous_or_undefined(base),
                    contiguous_or_undefined(bonus), contiguous_or_undefined(state),
                    contiguous_or_undefined(reset),
                    at::empty(r.sizes(), r.options()),
                    if_wanted(with_final_state, empty_state(sizes, r)),
                    empty_checkpoints(sizes, r),
                    if_wanted(bonus.has_value(), empty_numbers(sizes, r)), {}};
  Wkv7Forward& p = c.params;
  static_cast<HeadSizes&>(p) = sizes;
  p.r = c.r.const_data_ptr(), p.w = c.w.const_data_ptr(), p.k = c.k.const_data_ptr();
  p.v = c.v.const_data_ptr(), p.a = c.a.const_data_ptr(), p.b = c.b.const_data_ptr();
  p.base = data_or_null(c.base), p.bonus = data_or_null(c.bonus);
  p.state = data_or_null(c.state);
  p.reset = static_cast<const bool*>(data_or_null(c.reset));
  p.y = c.y.mutable_data_ptr(), p.s = c.s.mutable_data_ptr();
  // Null, since a tensor without elements has an address of its own.
  p.final_state = with_final_state ? c.final_state.mutable_data_ptr() : nullptr;
  p.checkpoints = sizes.kept > 0 ? c.checkpoints.mutable_data_ptr() : nullptr;
  return c;
}

inline Wkv7BackwardCall wkv7_backward_call(
    const at::Tensor& gy, const std::optional<at::Tensor>& gfinal_state,
    const std::optional<at::Tensor>& gs, const at::Tensor& r, const at::Tensor& w,
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& a, const at::Tensor& b,
    const std::optional<at::Tensor>& base, const std::optional<at::Tensor>& bonus,
    const std::optional<at::Tensor>& reset, const at::Tensor& checkpoints, bool with_gstate,
    at::ScalarType gw_dtype, int64_t checkpoint_interval) {
  HeadSizes sizes = wkv7_sizes(r, w, k, v, a, b, base, bonus, reset, checkpoint_interval);
  sizes.gw_dtype = dtype_of(gw_dtype, "gw");
  const int64_t B = sizes.batch, T = sizes.time, H = sizes.heads, N = sizes.size;
  CHECK_SHAPE(gy, B, T, H, N);
  CHECK_LIKE(gy, r);
  check_checkpoints(checkpoints, sizes, r);
  check_state(gfinal_state, "gfinal_state", sizes, r);
  if (gs.has_value()) {
    TORCH_CHECK(bonus.has_value(), "gs was given without bonus");
    check_shape(*gs, "gs", "B, T, H", {B, T, H});
    check_dtype(*gs, "gs", computing_type(r));
  }
  const auto like = [&r] { return at::empty(r.sizes(), r.options()); };
  Wkv7BackwardCall c{gy.contiguous(), contiguous_or_undefined(gfinal_state),
                     contiguous_or_undefined(gs), r.contiguous(), w.contiguous(), k.contiguous(),
                     v.contiguous(), a.contiguous(), b.contiguous(), contiguous_or_undefined(base),
                     contiguous_or_undefined(bonus), contiguous_or_undefined(reset),
                     checkpoints.contiguous(), like(),
                     at::empty(w.sizes(), w.options().dtype(gw_dtype)), like(), like(), like(),
                     like(), empty_rows(sizes, r), empty_rows(sizes, r), empty_state(sizes, r), {}};
  Wkv7Backward& p = c.params;
  static_cast<HeadSizes&>(p) = sizes;
  p.r = c.r.const_data_ptr(), p.w = c.w.const_data_ptr(), p.k = c.k.const_data_ptr();
  p.v = c.v.const_data_ptr(), p.a = c.a.const_data_ptr(), p.b = c.b.const_data_ptr();
  p.base = data_or_null(c.base), p.bonus = data_or_null(c.bonus);
  p.reset = static_cast<const bool*>(data_or_null(c.reset));
  p.checkpoints = c.checkpoints.const_data_ptr();
  p.gy = c.gy.const_data_ptr(), p.gs = data_or_null(c.gs);
  p.gfinal_state = data_or_null(c.gfinal_state);
  p.gr = c.gr.mutable_data_ptr(), p.gw = c.gw.mutable_data_ptr();
  p.gk = c.gk.mutable_data_ptr(), p.gv = c.gv.mutable_data_ptr();
  p.ga = c.ga.mutable_data_ptr(), p.gb = c.gb.mutable_data_ptr();
  p.gbase = c.gbase.mutable_data_ptr(), p.gbonus = c.gbonus.mutable_data_ptr();
  p.gstate = c.gstate.mutable_data_ptr();
  p.with_gstate = with_gstate;
  return c;
}

}  // namespace rwkv
