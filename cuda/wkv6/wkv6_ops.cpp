// Schema of the WKV-6 operators, the contract with src/rwkv_train/ops/wkv6/native.py.
//
// w: before the double exponential. checkpoint_interval: the forward pass keeps the state at every
// so many tokens for the backward pass; 0 for none. kernel: 0 as suits the call, else
// LaunchOptions::split. state, final_state: [B, H, N_value, N_key]; checkpoints: [B, H, kept,
// N_key, N_value]. gu is summed over the batch.
#include <torch/library.h>

#include "../wkv5_6/wkv5_6_ops.h"
#include "wkv6.h"

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "wkv6_forward(Tensor r, Tensor k, Tensor v, Tensor w, Tensor u, Tensor? state, "
      "Tensor? reset, int checkpoint_interval, int kernel) -> "
      "(Tensor y, Tensor final_state, Tensor checkpoints)");
  m.def(
      "wkv6_backward(Tensor gy, Tensor? gfinal_state, Tensor r, Tensor k, Tensor v, Tensor w, "
      "Tensor u, Tensor? reset, Tensor checkpoints, int checkpoint_interval, int kernel) -> "
      "(Tensor gr, Tensor gk, Tensor gv, Tensor gw, Tensor gu, Tensor gstate)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("wkv6_forward", &rwkv::wkv5_6_forward_on_cpu<true, &rwkv::wkv6_forward_cpu>);
  m.impl("wkv6_backward", &rwkv::wkv5_6_backward_on_cpu<true, &rwkv::wkv6_backward_cpu>);
}
