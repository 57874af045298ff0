// What the host code of all operators with heads repeats: sizes, states and optional tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../params/head_params.h"
#include "check.h"

namespace rwkv {

// checkpoint_interval: 0 keeps no states.
inline HeadSizes head_sizes(const at::Tensor& r, const at::Tensor& w,
                            const std::optional<at::Tensor>& reset, int64_t checkpoint_interval) {
  TORCH_CHECK(r.dim() == 4 && r.numel() > 0, "r must be [B, T, H, N], no axis empty, got ",
              r.sizes());
  TORCH_CHECK(checkpoint_interval >= 0, "checkpoint_interval must not be negative, got ",
              checkpoint_interval);
  const int64_t B = r.size(0), T = r.size(1), H = r.size(2), N = r.size(3);
  if (reset.has_value()) {
    check_shape(*reset, "reset", "B, T", {B, T});
    check_dtype(*reset, "reset", at::kBool);
  }
  const int64_t kept =
      checkpoint_interval == 0 ? 0 : (T + checkpoint_interval - 1) / checkpoint_interval;
  // Never 0, so that kernels may divide by it.
  const int64_t period = checkpoint_interval == 0 ? T : checkpoint_interval;
  const DType of_w = dtype_of(w, "w");
  return {B, T, H, N, period, kept, dtype_of(r, "r"), of_w, of_w};
}

inline void check_state(const std::optional<at::Tensor>& state, const char* name,
                        const HeadSizes& p, const at::Tensor& r) {
  if (!state.has_value()) return;
  check_shape(*state, name, "B, H, N, N", {p.batch, p.heads, p.size, p.size});
  check_dtype(*state, name, computing_type(r));
}

// x: what all tokens share, such as what is added to w.
inline void check_row(const std::optional<at::Tensor>& x, const char* name, const HeadSizes& p,
                      const at::Tensor& r) {
  if (!x.has_value()) return;
  check_shape(*x, name, "H, N", {p.heads, p.size});
  check_dtype(*x, name, computing_type(r));
}

inline void check_checkpoints(const at::Tensor& checkpoints, const HeadSizes& p,
                              const at::Tensor& r) {
  TORCH_CHECK(p.kept > 0,
              "backward needs the states that forward keeps with checkpoint_interval > 0");
  check_shape(checkpoints, "checkpoints", "B, H, kept, N, N",
              {p.batch, p.heads, p.kept, p.size, p.size});
  check_dtype(checkpoints, "checkpoints", computing_type(r));
}

// For a gradient of [H, N] per batch row.
inline at::Tensor empty_rows(const HeadSizes& p, const at::Tensor& r) {
  return at::empty({p.batch, p.heads, p.size}, r.options().dtype(computing_type(r)));
}

inline at::Tensor empty_numbers(const HeadSizes& p, const at::Tensor& r) {
  return at::empty({p.batch, p.time, p.heads}, r.options().dtype(computing_type(r)));
}

inline at::Tensor empty_state(const HeadSizes& p, const at::Tensor& r) {
  return at::empty({p.batch, p.heads, p.size, p.size}, r.options().dtype(computing_type(r)));
}

// In place of a result that nobody asked for.
inline at::Tensor if_wanted(bool wanted, const at::Tensor& result) {
  return wanted ? result : at::empty({0}, result.options());
}

// The sum over batch rows of what is asked for; without it no kernel is launched.
inline at::Tensor row_sum_if_wanted(bool wanted, const at::Tensor& rows) {
  return wanted ? rows.sum(0) : at::empty({0}, rows.options());
}

inline at::Tensor empty_checkpoints(const HeadSizes& p, const at::Tensor& r) {
  return at::empty({p.batch, p.heads, p.kept, p.size, p.size},
                   r.options().dtype(computing_type(r)));
}

}  // namespace rwkv
