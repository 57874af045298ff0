// The kernels behind rwkv::head_loss_rows_ and head_loss_mean; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"

namespace rwkv {

// The weight of the largest logit in its own gradient, as part of the token's loss.
constexpr double kL2Wrap = 1e-4;
// Tokens whose losses are added one after the other; the sums of such blocks are joined pairwise.
constexpr int64_t kHeadLossBlock = 64;

// "T" is the computing type: double if the logits are double, else float.
struct HeadLossSizes {
  int64_t rows, vocabulary;
  DType dtype, gradient_dtype, extra_dtype;  // of the logits; of what takes their place; of extra
  bool wants_gradient;
  double given_total;  // what the sum of losses is divided by; 0: the sum of the mask
};

// Tensors are contiguous; null stands for one that is absent.
struct HeadLossRows : HeadLossSizes {
  // [rows, V]; the gradient, where it is wanted, lies at the start of its row's own memory
  void* logits;
  const int64_t* targets;  // [rows]
  const void* mask;        // [rows] of T
  const void* extra;       // [rows, V], added to the logits
  void* extra_gradient;    // [rows, V] of extra's type
  void* losses;            // [rows] of T, without the mask
};

struct HeadLossMean : HeadLossSizes {
  const void* losses;  // [rows] of T
  const void* mask;    // [rows] of T
  void* loss;          // one T: sum of losses * mask / total
  void* total;         // one T; 1 where a mask adds up to 0
  double* sums;        // [2, ceil(rows / kHeadLossBlock)]: room to work in
};

// Rows [begin, end).
void head_loss_rows_cpu(const HeadLossRows& params, int64_t begin, int64_t end);
void head_loss_mean_cpu(const HeadLossMean& params);

}  // namespace rwkv
