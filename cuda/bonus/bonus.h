// The kernels behind rwkv::bonus_forward and bonus_backward; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"
#include "../common/params/token_blocks.h"

namespace rwkv {

// Tensors are contiguous; null stands for one that is absent. "T" is the computing type: double if
// the sequences are double, else float.
struct BonusSizes {
  int64_t batch, time, heads, size;  // B, T, H, N
  DType dtype;                       // of all [B, T, H, N]

  int64_t blocks() const { return batch * sum_blocks_of_row(time); }
};

struct BonusForward : BonusSizes {
  const void *r, *k;   // [B, T, H, N]
  const void* weight;  // [H, N] of T
  void* s;             // [B, T, H] of T
};

struct BonusBackward : BonusSizes {
  const void *r, *k, *weight;
  const void* gs;                    // [B, T, H] of T
  const void *gr_carry, *gk_carry;   // [B, T, H, N], added to gr and gk; null stands for zeros
  void *gr, *gk;                     // [B, T, H, N]
  void* sums;                        // [blocks of tokens, H, N] of T: the gradient of weight
  void* total;                       // [H, N] of T, the sums joined; CUDA alone writes it
};

// Blocks of tokens [begin, end).
void bonus_forward_cpu(const BonusForward& params, int64_t begin, int64_t end);
void bonus_backward_cpu(const BonusBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
