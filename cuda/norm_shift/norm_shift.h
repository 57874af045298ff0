// The kernels behind rwkv::norm_shift_* and moved_shift_*; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"
#include "../common/params/token_blocks.h"

namespace rwkv {

constexpr int kMostShifted = 8;

// Tensors are contiguous; null stands for one that is absent. "T" is the computing type: double if
// x is double, else float.
struct NormShiftSizes {
  int64_t batch, time, width, count;  // B, T, C and the number n of results
  DType dtype, y_dtype;  // of x and x'; of all other sequences: that of x, or 16 bit with x in fp32
  double eps;
};

struct NormShiftInputs : NormShiftSizes {
  const void *weight, *bias;  // [C] of T
  const void* mixes;          // [n, C] of T; null: n is 1, and y is the normalised token
  const void* last;           // [B, C] of T
  const bool* reset;          // [B, T]
  const void* moves;          // [n, B, T, C], added to the mixes
  // Or their factors, [n, B, T, R] and [n, R, C], whose product moves. CPU and T only.
  const void *low, *up;
  int64_t rank;               // R; 0 without the factors
  const void *out, *gate;     // [B, T, C]
};

struct NormShiftForward : NormShiftInputs {
  const void* x;  // [B, T, C]
  // [B, T, 2] of T, mean and inverse deviation of every token. Null: they are computed.
  const void* known;
  void* stream;      // x', [B, T, C]; null without out
  void* statistics;  // as `known`; null if that is given
  void* h_last;      // [B, C] of T
  void* y[kMostShifted];
};

struct NormShiftBackward : NormShiftInputs {
  const void *stream, *statistics;
  const void* gy[kMostShifted];
  const void* gstream;  // [B, T, C] of x's type
  const void* gh_last;  // [B, C] of T
  const void* gnormal;  // [B, T, C]: what others hand to the normalised tokens
  // All of the first three are null where gnormal_out is wanted: the sum of what the normalised
  // tokens get, with which another call goes on through the norm.
  void *gx, *gout, *ggate;
  void* gnormal_out;
  void* gmoves;
  void* sums;   // [blocks of tokens, n (with mixes) + 2 (with gx), C] of T: of mixes, weight, bias
  void* glast;  // [B, C] of T
  void* total;  // of the sums over all blocks; CUDA only
};

// Rows of `sums` for each block of tokens.
constexpr int64_t norm_shift_sums(const NormShiftBackward& p) {
  return (p.mixes == nullptr ? 0 : p.count) + (p.gx == nullptr ? 0 : 2);
}

// Tasks [begin, end): blocks of tokens (../common/params/token_blocks.h).
void norm_shift_forward_cpu(const NormShiftForward& params, int64_t begin, int64_t end);
void norm_shift_backward_cpu(const NormShiftBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
