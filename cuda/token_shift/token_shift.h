// The kernels behind rwkv::token_shift_forward and token_shift_backward; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"

namespace rwkv {

constexpr int kMostMixes = 8;
// Tokens of one task of the CPU kernels. Sums over tokens are taken inside a task and then over
// tasks in their order, so this constant fixes their result, whatever the number of threads.
constexpr int64_t kTokenShiftTokens = 32;

// Tensors are contiguous; null stands for one that is absent. "T" is the computing type: double if
// x is double, else float.
struct TokenShiftSizes {
  int64_t batch, time, width, count;  // B, T, C and the number n of mixes
  DType dtype, y_dtype, moves_dtype;  // of x, last and their gradients; of y; of moves
};

struct TokenShiftForward : TokenShiftSizes {
  const void* x;         // [B, T, C]
  const void* mixes;     // [n, C] of T
  const void* last;      // [B, C]
  const void* moves;     // [n, B, T, C]
  const bool* reset;     // [B, T]
  void* y[kMostMixes];   // n times [B, T, C]
};

struct TokenShiftBackward : TokenShiftSizes {
  const void *x, *mixes, *last, *moves;
  const bool* reset;
  const void* gy[kMostMixes];  // n times [B, T, C] of y's type
  void* gx;                    // [B, T, C]
  void* gmixes;                // [tasks, n, C] of T; the caller sums over the tasks
  void* glast;                 // [B, C]
  void* gmoves;                // [n, B, T, C]; null without moves
};

// Tasks [begin, end): batch row * ceil(T / kTokenShiftTokens) + block of tokens.
void token_shift_forward_cpu(const TokenShiftForward& params, int64_t begin, int64_t end);
void token_shift_backward_cpu(const TokenShiftBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
