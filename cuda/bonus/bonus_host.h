// Host side of the bonus's weight, the same for every device: checks the arguments, makes them
// contiguous, allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/check.h"
#include "bonus.h"

namespace rwkv {

struct BonusInputs {
  at::Tensor r, k, weight;
};

struct BonusForwardCall {
  BonusInputs inputs;
  at::Tensor s;
  BonusForward params;
};

struct BonusBackwardCall {
  BonusInputs inputs;
  at::Tensor gs, gr_carry, gk_carry, gr, gk;
  at::Tensor sums;  // per block of tokens
  BonusBackward params;
};

inline BonusInputs bonus_inputs(const at::Tensor& r, const at::Tensor& k,
                                const at::Tensor& weight) {
  TORCH_CHECK(r.dim() == 4 && r.numel() > 0, "r must be [B, T, H, N], no axis empty, got ",
              r.sizes());
  const int64_t B = r.size(0), T = r.size(1), H = r.size(2), N = r.size(3);
  CHECK_SHAPE(k, B, T, H, N);
  CHECK_LIKE(k, r);
  CHECK_SHAPE(weight, H, N);
  CHECK_DTYPE(weight, computing_type(r));
  return {r.contiguous(), k.contiguous(), weight.contiguous()};
}

template <typename Params> void fill_bonus(Params& p, const BonusInputs& inputs) {
  const at::Tensor& r = inputs.r;
  p.batch = r.size(0), p.time = r.size(1), p.heads = r.size(2), p.size = r.size(3);
  p.dtype = dtype_of(r, "r");
  p.r = r.const_data_ptr(), p.k = inputs.k.const_data_ptr();
  p.weight = inputs.weight.const_data_ptr();
}

inline BonusForwardCall bonus_forward_call(const at::Tensor& r, const at::Tensor& k,
                                           const at::Tensor& weight) {
  BonusForwardCall c{bonus_inputs(r, k, weight), {}, {}};
  fill_bonus(c.params, c.inputs);
  c.s = at::empty(r.sizes().slice(0, 3), weight.options());
  c.params.s = c.s.mutable_data_ptr();
  return c;
}

// joined: blocks of tokens for which the kernel leaves one sum.
inline BonusBackwardCall bonus_backward_call(const at::Tensor& gs,
                                             const std::optional<at::Tensor>& gr_carry,
                                             const std::optional<at::Tensor>& gk_carry,
                                             const at::Tensor& r, const at::Tensor& k,
                                             const at::Tensor& weight, int64_t joined) {
  BonusBackwardCall c{bonus_inputs(r, k, weight), {}, {}, {}, {}, {}, {}, {}};
  BonusBackward& p = c.params;
  fill_bonus(p, c.inputs);
  check_shape(gs, "gs", "B, T, H", r.sizes().slice(0, 3));
  check_dtype(gs, "gs", computing_type(r));
  for (const auto* carry : {&gr_carry, &gk_carry}) {
    if (!carry->has_value()) continue;
    check_shape(**carry, "gr_carry and gk_carry", "B, T, H, N", r.sizes());
    check_like(**carry, "gr_carry and gk_carry", r, "r");
  }
  c.gs = gs.contiguous();
  c.gr_carry = contiguous_or_undefined(gr_carry), c.gk_carry = contiguous_or_undefined(gk_carry);
  c.gr = at::empty(r.sizes(), r.options()), c.gk = at::empty(r.sizes(), r.options());
  c.sums = at::empty({(p.blocks() + joined - 1) / joined, p.heads, p.size}, weight.options());
  p.gs = c.gs.const_data_ptr();
  p.gr_carry = data_or_null(c.gr_carry), p.gk_carry = data_or_null(c.gk_carry);
  p.gr = c.gr.mutable_data_ptr(), p.gk = c.gk.mutable_data_ptr();
  p.sums = c.sums.mutable_data_ptr();
  return c;
}

}  // namespace rwkv
