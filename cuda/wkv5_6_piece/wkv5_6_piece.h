// The kernels behind rwkv::wkv5_6_piece, what a piece of a sequence does to the state of RWKV-5 and
// 6; plain C++, no torch. "T" is the computing type.
#pragma once

#include "../common/params/head_params.h"

namespace rwkv {

// Forwards the contribution, the sum over tokens of v k^T decayed by all later tokens; backwards
// the gradient of the initial state, the sum of gy r^T decayed by all earlier ones.
struct Wkv5_6Piece : HeadSizes {
  const void *keys, *values;  // [B, T, H, N]: k and v; backwards r and gy
  const void* w;              // [B, T, H, N] (RWKV-6) or [H, N] (RWKV-5)
  const void* base;           // RWKV-6: [H, N] of T, added to w; or null for zero
  const bool* reset;          // [B, T] or null
  bool decay_per_token, backwards;
  void* decay;   // [B, H, N] of T: the tokens' decays multiplied; anything in rows with a reset
  void* matrix;  // [B, H, N_value, N_key] of T
};

// Tasks [begin, end): batch row * heads + head.
void wkv5_6_piece_cpu(const Wkv5_6Piece& params, int64_t begin, int64_t end);

}  // namespace rwkv
