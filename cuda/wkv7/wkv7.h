// The kernels behind rwkv::wkv7_forward and wkv7_backward; plain C++, no torch.
#pragma once

#include "../common/params/head_params.h"

namespace rwkv {

// exp(-1/2): the decay is exp(-exp(-1/2) sigmoid(w)), so never below 0.545.
constexpr double kWkv7LargestRate = 0.60653065971263342;

struct Wkv7Forward : HeadSizes {
  const void *r, *k, *v, *a, *b;  // [B, T, H, N]
  const void* w;                  // [B, T, H, N] of w_dtype, before the sigmoid
  const void* base;               // [H, N] of the computing type, added to w; or null for zero
  const void* bonus;              // [H, N] of the computing type, or null: no s
  const void* state;              // [B, H, N_value, N_key] of the computing type
  const bool* reset;              // [B, T]
  void* y;                        // [B, T, H, N]
  void* s;                        // [B, T, H] of the computing type: sum_N r k bonus
  void* final_state;              // as state, or null
  // [B, H, kept, N, N] of the computing type, [key][value] on a CPU, [value][key] on a GPU: forward
  // writes it for the same device's backward, and nobody else reads it
  void* checkpoints;
};

struct Wkv7Backward : HeadSizes {
  const void *r, *k, *v, *a, *b, *w, *base, *bonus;
  const bool* reset;
  const void* checkpoints;
  const void* gy;                    // [B, T, H, N]
  const void* gs;                    // [B, T, H] of the computing type, or null: only with bonus
  const void* gfinal_state;          // [B, H, N_value, N_key] of the computing type
  void *gr, *gk, *gv, *ga, *gb;      // [B, T, H, N]
  void* gw;                          // [B, T, H, N] of gw_dtype
  void *gbase, *gbonus;              // [B, H, N] of the computing type; the caller sums over B
  void* gstate;  // [B, H, N_value, N_key] of the computing type; room for it, wanted or not
  bool with_gstate = true;
};

// Tasks [begin, end), each a group of at most `most` heads of one batch row:
// batch row * ceil(H / most) + number of the group.
void wkv7_forward_cpu(const Wkv7Forward& params, int64_t most, int64_t begin, int64_t end);
void wkv7_backward_cpu(const Wkv7Backward& params, int64_t most, int64_t begin, int64_t end);

}  // namespace rwkv
