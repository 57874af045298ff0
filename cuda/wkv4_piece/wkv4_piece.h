// The kernels behind rwkv::wkv4_piece, the sums that a piece of a sequence adds to the state of
// RWKV-4; plain C++, no torch. "T" is the computing type.
#pragma once

#include "../wkv4/wkv4.h"

namespace rwkv {

struct Wkv4Piece : Wkv4Sizes {
  const void* w;        // [A] of T, before both exponentials
  const void *k, *v;    // [B, T, A]
  const bool* reset;    // [B, T] or null
  void* sums;           // [B, 3, A] of T: aa, bb, pp
};

// Tasks [begin, end): batch row * ceil(A / kWkv4Channels) + group of channels.
void wkv4_piece_cpu(const Wkv4Piece& params, int64_t begin, int64_t end);

}  // namespace rwkv
