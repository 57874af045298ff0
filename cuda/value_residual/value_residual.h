// The kernels behind rwkv::value_residual_forward and value_residual_backward; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"
#include "../common/params/token_blocks.h"

namespace rwkv {

// Tensors are contiguous. "T" is the computing type: double if the element type is double, else
// float.
struct ValueResidualSizes {
  int64_t batch, time, width;  // B, T, D
  DType dtype;                 // of all [B, T, D]
};

struct ValueResidualForward : ValueResidualSizes {
  const void *value, *first, *logits;  // [B, T, D]
  const void* base;                    // [D] of T
  void* v;                             // [B, T, D]
};

struct ValueResidualBackward : ValueResidualSizes {
  const void* gv;      // [B, T, D]
  const void* gagain;  // [B, T, D], added to gv; null stands for zeros
  const void* gcarry;  // [B, T, D], added to the gradient of first; null stands for zeros
  const void *value, *first, *logits, *base;
  void *gvalue, *gfirst, *glogits;  // [B, T, D]
  void* sums;                       // [blocks of tokens, D] of T: the gradient of base
  void* total;                      // [D] of T, the sums joined; CUDA alone writes it
};

// Tasks [begin, end): block of tokens * pieces of the width + piece.
int64_t value_residual_tasks(const ValueResidualSizes& params);
void value_residual_forward_cpu(const ValueResidualForward& params, int64_t begin, int64_t end);
void value_residual_backward_cpu(const ValueResidualBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
