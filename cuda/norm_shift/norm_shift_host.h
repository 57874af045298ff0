// Host side of norm_shift, the same for every device: checks the arguments, makes them contiguous,
// allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/torch/check.h"
#include "norm_shift.h"

namespace rwkv {

// The arguments as torch hands them over. stream: x' in a backward pass and where statistics are
// given, x else.
struct NormShiftArguments {
  const at::Tensor &stream, &weight, &bias;
  // With up `moves` are the first factors of the product that moves.
  const std::optional<at::Tensor> &mixes, &last, &reset, &moves, &out, &gate, &up;
};

// What the kernels' pointers point to.
template <typename Params> struct NormShiftCall {
  std::vector<at::Tensor> kept;
  Params params{};

  const void* keep(const std::optional<at::Tensor>& x) {
    if (!x.has_value()) return nullptr;
    kept.push_back(x->contiguous());
    return kept.back().const_data_ptr();
  }
};

inline void check_norm_shift(const NormShiftArguments& given, at::ScalarType y_type) {
  const at::Tensor& stream = given.stream;
  TORCH_CHECK(stream.dim() == 3 && stream.numel() > 0, "x must be [B, T, C], no axis empty, got ",
              stream.sizes());
  const int64_t B = stream.size(0), T = stream.size(1), C = stream.size(2);
  const auto wide = computing_type(stream);
  check_shape(given.weight, "weight", "C", {C}), check_dtype(given.weight, "weight", wide);
  check_shape(given.bias, "bias", "C", {C}), check_dtype(given.bias, "bias", wide);
  TORCH_CHECK(y_type == stream.scalar_type() ||
                  (stream.scalar_type() == at::kFloat && y_type != at::kDouble),
              "the results must have the dtype of x, or 16 bits where that is float32; got ", y_type,
              " and ", stream.scalar_type());
  int64_t n = 1;
  if (given.mixes.has_value()) {
    n = given.mixes->dim() == 2 ? given.mixes->size(0) : 0;
    TORCH_CHECK(n >= 1 && n <= kMostShifted, "mixes must be [n, C] with n from 1 to ",
                kMostShifted, ", got ", given.mixes->sizes());
    check_shape(*given.mixes, "mixes", "n, C", {n, C});
    check_dtype(*given.mixes, "mixes", wide);
  }
  if (given.last.has_value()) {
    check_shape(*given.last, "last", "B, C", {B, C}), check_dtype(*given.last, "last", wide);
  }
  if (given.reset.has_value()) {
    check_shape(*given.reset, "reset", "B, T", {B, T});
    check_dtype(*given.reset, "reset", at::kBool);
  }
  if (given.moves.has_value()) {
    const bool is_factor = given.up.has_value();
    const int64_t R = is_factor && given.moves->dim() == 4 ? given.moves->size(3) : C;
    check_shape(*given.moves, "moves", is_factor ? "n, B, T, R" : "n, B, T, C", {n, B, T, R});
    check_dtype(*given.moves, "moves", y_type);
    if (is_factor) {
      check_shape(*given.up, "up", "n, R, C", {n, R, C}), check_dtype(*given.up, "up", wide);
    }
  }
  TORCH_CHECK(given.out.has_value() || !given.gate.has_value(), "a gate needs out");
  if (given.out.has_value()) {
    check_shape(*given.out, "out", "B, T, C", {B, T, C});
    check_dtype(*given.out, "out", y_type);
  }
  if (given.gate.has_value()) {
    check_shape(*given.gate, "gate", "B, T, C", {B, T, C});
    check_like(*given.gate, "gate", *given.out, "out");
  }
}

// Sizes and inputs; the pointer to the stream, which has another name in each pass, is returned.
template <typename Params>
const void* fill_norm_shift(NormShiftCall<Params>& call, const NormShiftArguments& given,
                            at::ScalarType y_type) {
  check_norm_shift(given, y_type);
  Params& p = call.params;
  const at::Tensor& x = given.stream;
  p.batch = x.size(0), p.time = x.size(1), p.width = x.size(2);
  p.count = given.mixes.has_value() ? given.mixes->size(0) : 1;
  p.dtype = dtype_of(x, "x"), p.y_dtype = dtype_of(y_type, "the results");
  p.weight = call.keep(given.weight), p.bias = call.keep(given.bias);
  p.mixes = call.keep(given.mixes), p.last = call.keep(given.last);
  p.reset = static_cast<const bool*>(call.keep(given.reset));
  if (given.up.has_value()) {
    p.low = call.keep(given.moves), p.up = call.keep(given.up), p.rank = given.up->size(1);
  } else {
    p.moves = call.keep(given.moves);
  }
  p.out = call.keep(given.out), p.gate = call.keep(given.gate);
  return call.keep(x);
}

struct NormShiftForwardCall : NormShiftCall<NormShiftForward> {
  at::Tensor stream, statistics, h_last;
  std::vector<at::Tensor> y;
};

// known: statistics of a call before, of which this one reads the stream again.
inline NormShiftForwardCall norm_shift_forward_call(const NormShiftArguments& given,
                                                    const std::optional<at::Tensor>& known,
                                                    double eps, at::ScalarType y_type) {
  NormShiftForwardCall c;
  c.params.x = fill_norm_shift(c, given, y_type);
  NormShiftForward& p = c.params;
  const at::Tensor &x = given.stream, nothing = at::empty({0}, x.options());
  p.eps = eps, c.stream = c.statistics = c.h_last = nothing;
  const auto wide = x.options().dtype(computing_type(x));
  if (known.has_value()) {
    check_shape(*known, "statistics", "B, T, 2", {p.batch, p.time, 2});
    check_dtype(*known, "statistics", computing_type(x));
    p.known = c.keep(known);
  } else {
    c.statistics = at::empty({p.batch, p.time, 2}, wide);
    c.h_last = at::empty({p.batch, p.width}, wide);
    p.statistics = c.statistics.mutable_data_ptr(), p.h_last = c.h_last.mutable_data_ptr();
  }
  if (given.out.has_value()) {
    c.stream = at::empty(x.sizes(), x.options());
    p.stream = c.stream.mutable_data_ptr();
  }
  for (int64_t i = 0; i < p.count; ++i) {
    c.y.push_back(at::empty(x.sizes(), x.options().dtype(y_type)));
    p.y[i] = c.y.back().mutable_data_ptr();
  }
  return c;
}

// A tensor [B, T, C] of one zero: the normalised tokens are written nowhere, and only their
// gradient is wanted.
inline at::Tensor norm_shift_stand_in(const at::Tensor& x, at::ScalarType y_type) {
  return at::zeros({1}, x.options().dtype(y_type)).expand(x.sizes());
}

// The gradients that a backward pass is given.
struct NormShiftGradients {
  const c10::List<std::optional<at::Tensor>>& gy;
  const std::optional<at::Tensor>&gstream, &gh_last, &gnormal;
};

struct NormShiftBackwardCall : NormShiftCall<NormShiftBackward> {
  at::Tensor gx, gout, ggate, gnormal, gmoves, glast;
  at::Tensor sums;  // per block of tokens
};

template <typename T> void* allocate(at::Tensor& to, T sizes, const at::TensorOptions& options) {
  to = at::empty(sizes, options);
  return to.mutable_data_ptr();
}

// again: the call reads a stream again, so that its gradient stops at the normalised tokens.
// has_out: x had a branch; its gradient is that of x where there is no gate and the dtypes are equal.
// joined: blocks of tokens whose sums the kernel joins by itself.
inline NormShiftBackwardCall norm_shift_backward_call(
    const NormShiftGradients& gradients, const NormShiftArguments& given,
    const at::Tensor& statistics, bool has_out, at::ScalarType y_type, bool again,
     int64_t joined) {
  NormShiftBackwardCall c;
  c.params.stream = fill_norm_shift(c, given, y_type);
  NormShiftBackward& p = c.params;
  const at::Tensor& x = given.stream;
  const auto wide = x.options().dtype(computing_type(x)), narrow = x.options().dtype(y_type);
  check_shape(statistics, "statistics", "B, T, 2", {p.batch, p.time, 2});
  check_dtype(statistics, "statistics", computing_type(x));
  p.statistics = c.keep(statistics);
  TORCH_CHECK(static_cast<int64_t>(gradients.gy.size()) == p.count, "gy must be ", p.count,
              " tensors, got ", gradients.gy.size());
  const auto keep = [&](const std::optional<at::Tensor>& g, const char* name, at::IntArrayRef shape,
                        at::ScalarType type) {
    if (g.has_value()) check_shape(*g, name, "...", shape), check_dtype(*g, name, type);
    return c.keep(g);
  };
  for (int64_t i = 0; i < p.count; ++i) p.gy[i] = keep(gradients.gy[i], "gy", x.sizes(), y_type);
  p.gstream = keep(gradients.gstream, "gstream", x.sizes(), x.scalar_type());
  p.gh_last = keep(gradients.gh_last, "gh_last", {p.batch, p.width}, computing_type(x));
  p.gnormal = keep(gradients.gnormal, "gnormal", x.sizes(), y_type);
  for (at::Tensor* g : {&c.gx, &c.gout, &c.ggate, &c.gnormal, &c.gmoves, &c.glast}) {
    *g = at::empty({0}, x.options());
  }
  if (again) {
    p.gnormal_out = allocate(c.gnormal, x.sizes(), narrow);
  } else {
    p.gx = allocate(c.gx, x.sizes(), x.options());
  }
  if (given.gate.has_value() || (has_out && y_type != x.scalar_type())) {
    p.gout = allocate(c.gout, x.sizes(), narrow);
  }
  if (given.gate.has_value()) p.ggate = allocate(c.ggate, x.sizes(), narrow);
  if (given.moves.has_value()) {
    p.gmoves = allocate(c.gmoves, at::IntArrayRef{p.count, p.batch, p.time, p.width}, narrow);
  }
  if (given.last.has_value()) p.glast = allocate(c.glast, given.last->sizes(), wide);
  const int64_t blocks = p.batch * sum_blocks_of_row(p.time);
  const int64_t parts = (blocks + joined - 1) / joined;
  p.sums = allocate(c.sums, at::IntArrayRef{parts, norm_shift_sums(p), p.width}, wide);
  return c;
}

}  // namespace rwkv
