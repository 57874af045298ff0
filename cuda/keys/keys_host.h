// Host side of the keys, the same for every device: checks the arguments, makes them contiguous,
// allocates the results and fills the parameters of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>

#include "../common/torch/check.h"
#include "keys.h"

namespace rwkv {

struct KeysInputs {
  at::Tensor key, logits, base, removal, replacement;
};

struct KeysForwardCall {
  KeysInputs inputs;
  at::Tensor k, a, b;
  KeysForward params;
};

struct KeysBackwardCall {
  KeysInputs inputs;
  at::Tensor gk, ga, gb, gkey, glogits;
  at::Tensor sums;  // per block of tokens
  KeysBackward params;
};

inline KeysInputs keys_inputs(const at::Tensor& key, const at::Tensor& logits,
                              const at::Tensor& base, const at::Tensor& removal,
                              const at::Tensor& replacement) {
  TORCH_CHECK(key.dim() == 4 && key.numel() > 0, "key must be [B, T, H, N], no axis empty, got ",
              key.sizes());
  const int64_t B = key.size(0), T = key.size(1), H = key.size(2), N = key.size(3);
  CHECK_SHAPE(logits, B, T, H, N);
  CHECK_LIKE(logits, key);
  CHECK_SHAPE(base, H, N);
  CHECK_SHAPE(removal, H, N);
  CHECK_SHAPE(replacement, H, N);
  for (const at::Tensor* vector : {&base, &removal, &replacement}) {
    check_dtype(*vector, "base, removal and replacement", computing_type(key));
  }
  return {key.contiguous(), logits.contiguous(), base.contiguous(), removal.contiguous(),
          replacement.contiguous()};
}

template <typename Params> void fill_keys(Params& p, const KeysInputs& inputs) {
  const at::Tensor& key = inputs.key;
  p.batch = key.size(0), p.time = key.size(1), p.heads = key.size(2), p.size = key.size(3);
  p.dtype = dtype_of(key, "key");
  p.key = key.const_data_ptr(), p.logits = inputs.logits.const_data_ptr();
  p.base = inputs.base.const_data_ptr(), p.removal = inputs.removal.const_data_ptr();
  p.replacement = inputs.replacement.const_data_ptr();
}

inline KeysForwardCall keys_forward_call(const at::Tensor& key, const at::Tensor& logits,
                                         const at::Tensor& base, const at::Tensor& removal,
                                         const at::Tensor& replacement) {
  KeysForwardCall c{keys_inputs(key, logits, base, removal, replacement), {}, {}, {}, {}};
  fill_keys(c.params, c.inputs);
  for (at::Tensor* result : {&c.k, &c.a, &c.b}) *result = at::empty(key.sizes(), key.options());
  c.params.k = c.k.mutable_data_ptr(), c.params.a = c.a.mutable_data_ptr();
  c.params.b = c.b.mutable_data_ptr();
  return c;
}

// joined: blocks of tokens whose sums the kernel joins by itself
inline KeysBackwardCall keys_backward_call(
    const std::optional<at::Tensor>& gk, const std::optional<at::Tensor>& ga,
    const std::optional<at::Tensor>& gb, const at::Tensor& key, const at::Tensor& logits,
    const at::Tensor& base, const at::Tensor& removal, const at::Tensor& replacement,
    int64_t joined) {
  KeysBackwardCall c{
      keys_inputs(key, logits, base, removal, replacement), {}, {}, {}, {}, {}, {}, {}};
  KeysBackward& p = c.params;
  fill_keys(p, c.inputs);
  for (const auto* given : {&gk, &ga, &gb}) {
    if (!given->has_value()) continue;
    check_shape(**given, "gk, ga and gb", "B, T, H, N", key.sizes());
    check_like(**given, "gk, ga and gb", key, "key");
  }
  c.gk = contiguous_or_undefined(gk), c.ga = contiguous_or_undefined(ga);
  c.gb = contiguous_or_undefined(gb);
  p.gk = data_or_null(c.gk), p.ga = data_or_null(c.ga), p.gb = data_or_null(c.gb);
  c.gkey = at::empty(key.sizes(), key.options());
  c.glogits = at::empty(key.sizes(), key.options());
  const int64_t blocks = p.batch * sum_blocks_of_row(p.time);
  c.sums = at::empty({(blocks + joined - 1) / joined, kKeysVectors, p.heads, p.size},
                     base.options());
  p.gkey = c.gkey.mutable_data_ptr(), p.glogits = c.glogits.mutable_data_ptr();
  p.sums = c.sums.mutable_data_ptr();
  return c;
}

}  // namespace rwkv
