// What the kernels of RWKV-5 and 6 receive: sizes, element types and raw memory, no torch. "T" is
// the computing type.
#pragma once

#include "../common/params/head_params.h"

namespace rwkv {

// Limit of w. Beyond it exp(-exp(w)) is zero in T. Without the limit exp(w) becomes infinite, and
// zero times that, in the gradient of w, is NaN.
template <typename T> constexpr T kLargestLogRate = sizeof(T) == 4 ? T(5) : T(7);

struct Wkv5_6Forward : HeadSizes {
  const void *r, *k, *v;   // [B, T, H, N]
  const void* w;           // [B, T, H, N] (RWKV-6) or [H, N] (RWKV-5), before both exponentials
  const void* u;           // [H, N] of T
  const void* base;        // RWKV-6: [H, N] of T, added to w; or null for zero
  const void* state;       // [B, H, N_value, N_key] of T, or null for zero
  const bool* reset;       // [B, T] or null
  void* y;                 // [B, T, H, N]
  void* final_state;       // as state, or null
  // [B, H, kept, N, N] of T, or null; [key][value] on a CPU, [value][key] on a GPU: forward writes
  // it for the same device's backward, and nobody else reads it
  void* checkpoints;
};

struct Wkv5_6Backward : HeadSizes {
  const void *r, *k, *v, *w, *u, *base;
  const bool* reset;
  const void* checkpoints;
  const void* gy;            // [B, T, H, N]
  const void* gfinal_state;  // [B, H, N_value, N_key] of T, or null for zero
  void *gr, *gk, *gv;        // [B, T, H, N]
  void* gw;                  // RWKV-6: [B, T, H, N] of gw_dtype; RWKV-5: [B, H, N] of T
  void* gbase;               // RWKV-6: [B, H, N] of T; the caller sums over the batch
  void* gu;                  // [B, H, N] of T; the caller sums over the batch
  void* gstate;              // [B, H, N_value, N_key] of T; room for it, wanted or not
  bool with_gstate = true;
};

}  // namespace rwkv
