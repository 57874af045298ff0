// The kernels behind rwkv::head_norm_gate_forward and _backward; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"
#include "../common/params/token_blocks.h"

namespace rwkv {

// Tensors are contiguous; null stands for one that is absent. "T" is the computing type: double if
// the sequences are double, else float. D = H N.
struct HeadNormSizes {
  int64_t batch, time, heads, size;  // B, T, H, N
  DType dtype;                       // of y, g, v, o and their gradients
  bool silu;                         // whether the gate is silu(g) and not g
  double eps;

  int64_t blocks() const { return batch * sum_blocks_of_row(time); }
};

struct HeadNormForward : HeadNormSizes {
  const void *y, *g;          // [B, T, H, N], [B, T, D]
  const void *weight, *bias;  // [D] of T
  const void *v, *s;          // [B, T, H, N], [B, T, H] of T; both or neither
  void* o;                    // [B, T, D]
};

struct HeadNormBackward : HeadNormSizes {
  const void *go, *y, *g, *weight, *bias, *v, *s;
  void *gy, *gg, *gv, *gs;  // gv and gs null without v
  void* sums;   // of T: on a CPU [blocks, 2, D], gradients of weight and bias by block of tokens
  void* total;  // [2, D], the sum of the sums: of the CUDA launcher alone
};

// Blocks of tokens [begin, end).
void head_norm_gate_forward_cpu(const HeadNormForward& params, int64_t begin, int64_t end);
void head_norm_gate_backward_cpu(const HeadNormBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
