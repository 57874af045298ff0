// The kernels behind rwkv::wkv4_forward and wkv4_backward; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"

namespace rwkv {

// The exponent of an empty sum: exp(it - anything) is 0, and twice it is finite in fp32.
constexpr double kWkv4EmptyExponent = -1e38;
// Limit of w: exp(20) dwarfs every finite difference of keys, so beyond it nothing changes.
constexpr double kWkv4LargestLogRate = 20;

// Tensors are contiguous; null stands for one that is absent or not wanted. "T" is the computing
// type: double if `dtype` is double, else float. The three rows of a state are aa, bb and pp.
struct Wkv4Sizes {
  int64_t batch, time, width;  // B, T, A
  int64_t checkpoint_interval;  // tokens between the states kept for the backward pass
  int64_t kept;                 // states kept per batch row: ceil(time / checkpoint_interval)
  DType dtype;                 // of k, v, y and their gradients
};

struct Wkv4Forward : Wkv4Sizes {
  const void *w, *u;   // [A] of T; w before both exponentials
  const void *k, *v;   // [B, T, A]
  const void* state;   // [B, 3, A] of T
  const bool* reset;   // [B, T]
  void* y;             // [B, T, A]
  void* final_state;   // [B, 3, A] of T
  void* checkpoints;   // [B, kept, 3, A] of T
};

struct Wkv4Backward : Wkv4Sizes {
  const void *w, *u, *k, *v;
  const bool* reset;
  const void* checkpoints;
  const void* gy;            // [B, T, A]
  const void* gfinal_state;  // [B, 3, A] of T; the row of pp is not read
  void *gw, *gu;             // [B, A] of T; the caller sums over the batch
  void *gk, *gv;             // [B, T, A]
  void* gstate;              // [B, 3, A] of T
};

// Channels of one task, and tokens between two corrections of the running exponent;
// checkpoint_interval is a multiple of the latter.
constexpr int64_t kWkv4Channels = 64, kWkv4Tokens = 16;

// Tasks [begin, end): batch row * ceil(A / kWkv4Channels) + group of channels.
void wkv4_forward_cpu(const Wkv4Forward& params, int64_t begin, int64_t end);
void wkv4_backward_cpu(const Wkv4Backward& params, int64_t begin, int64_t end);

}  // namespace rwkv
