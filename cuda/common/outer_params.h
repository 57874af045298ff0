// What the kernels of RWKV-5 and 6 are told: sizes, element types and raw memory, no torch.
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace rwkv {

// All tensors are contiguous. "T" below is the computing type: double if `dtype` is double, else
// float. Null pointers stand for tensors that are absent or not wanted.
struct OuterSizes {
  int64_t batch, time, heads, size;  // B, T, H, N
  int64_t keep_every;                // tokens between the states kept for the backward pass
  int64_t kept;                      // states kept per head: ceil(time / keep_every)
  DType dtype;                       // of r, k, v, y and their gradients
  DType w_dtype;                     // of w and gw
};

struct OuterForward : OuterSizes {
  const void *r, *k, *v;   // [B, T, H, N]
  const void* w;           // [B, T, H, N] (RWKV-6) or [H, N] (RWKV-5), before both exponentials
  const void* u;           // [H, N] of T
  const void* state;       // [B, H, N_value, N_key] of T, or null for zero
  const bool* reset;       // [B, T] or null
  void* y;                 // [B, T, H, N]
  void* final_state;       // as state
  void* checkpoints;       // [B, H, kept, N_key, N_value] of T, or null
};

struct OuterBackward : OuterSizes {
  const void *r, *k, *v, *w, *u;
  const bool* reset;
  const void* checkpoints;
  const void* gy;            // [B, T, H, N]
  const void* gfinal_state;  // [B, H, N_value, N_key] of T, or null for zero
  void *gr, *gk, *gv;        // [B, T, H, N]
  void* gw;                  // RWKV-6: [B, T, H, N] of w_dtype; RWKV-5: [B, H, N] of T
  void* gu;                  // [B, H, N] of T; the caller sums over the batch
  void* gstate;              // [B, H, N_value, N_key] of T
};

}  // namespace rwkv
