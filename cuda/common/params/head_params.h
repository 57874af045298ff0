// Sizes and element types of a call whose tensors are [B, T, H, N] (RWKV-5, 6, 7), no torch.
//
// In the parameters of all kernels the tensors are contiguous, and null stands for one that is
// absent or not wanted. "The computing type" is double if `dtype` is double, else float.
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace rwkv {

struct HeadSizes {
  int64_t batch, time, heads, size;  // B, T, H, N
  int64_t checkpoint_interval;       // tokens between the states kept for the backward pass
  int64_t kept;                      // states kept per head: ceil(time / checkpoint_interval)
  DType dtype;                       // of r, k, v, a, b, y and their gradients
  DType w_dtype;                     // of w
  DType gw_dtype;                    // of w's gradient, where it is [B, T, H, N]
};

}  // namespace rwkv
