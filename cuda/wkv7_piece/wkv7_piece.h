// The kernels behind rwkv::wkv7_piece, what a piece of a sequence does to the state of RWKV-7;
// plain C++, no torch. "T" is the computing type.
#pragma once

#include "../common/params/head_params.h"

namespace rwkv {

// Forwards transition and contribution; backwards the gradient of the initial state through y.
struct Wkv7Piece : HeadSizes {
  const void *keys, *values;  // [B, T, H, N]: k and v; backwards r and gy
  const void *a, *b;          // [B, T, H, N]
  const void* w;              // [B, T, H, N] of w_dtype, before the sigmoid
  const void* base;           // [H, N] of T, added to w; or null for zero
  const bool* reset;          // [B, T] or null
  bool backwards;
  void* transition;  // forwards: [B, H, N_key, N_key] of T; anything in rows with a reset
  void* matrix;      // [B, H, N_value, N_key] of T
};

// Tasks [begin, end): batch row * heads + head.
void wkv7_piece_cpu(const Wkv7Piece& params, int64_t begin, int64_t end);

}  // namespace rwkv
