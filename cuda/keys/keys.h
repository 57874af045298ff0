// The kernels behind rwkv::keys_forward and keys_backward; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"
#include "../common/params/token_blocks.h"

namespace rwkv {

// A shorter removal key counts as one of this length.
constexpr double kShortestKey = 1e-12;
constexpr int64_t kKeysVectors = 3;  // base, removal, replacement

// Tensors are contiguous. "T" is the computing type: double if the element type is double, else
// float.
struct KeysSizes {
  int64_t batch, time, heads, size;  // B, T, H, N
  DType dtype;                       // of all [B, T, H, N]
};

struct KeysForward : KeysSizes {
  const void *key, *logits;                  // [B, T, H, N]
  const void *base, *removal, *replacement;  // [H, N] of T
  void *k, *a, *b;                           // [B, T, H, N]
};

struct KeysBackward : KeysSizes {
  const void *gk, *ga, *gb;  // [B, T, H, N]; null stands for zeros
  const void *key, *logits, *base, *removal, *replacement;
  void *gkey, *glogits;  // [B, T, H, N]
  void* sums;            // [blocks of tokens, 3, H, N] of T: of base, removal, replacement
  void* total;           // [3, H, N] of T, the sums joined; CUDA alone writes it
};

// Tasks [begin, end): block of tokens * groups of heads + group.
int64_t keys_tasks(const KeysSizes& params);
void keys_forward_cpu(const KeysForward& params, int64_t begin, int64_t end);
void keys_backward_cpu(const KeysBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
