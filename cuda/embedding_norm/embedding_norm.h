// The kernels behind rwkv::embedding_norm_forward and _backward; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"

namespace rwkv {

// Occurrences of a token that are added one after the other; the sums of such blocks are joined
// pairwise.
constexpr int64_t kOccurrences = 64;

// Tensors are contiguous; null stands for one that is not wanted. "T" is the computing type: double
// if the table is double, else float.
struct EmbeddingNormSizes {
  int64_t tokens, vocabulary, width;  // n, V, C
  DType dtype;                        // of the table, the results and their gradients
  double eps;
};

struct EmbeddingNormForward : EmbeddingNormSizes {
  const int64_t* ids;  // [n]
  const void* table;   // [V, C]
  const void *weight, *bias;  // [C] of T
  void* y;                    // [n, C]
};

struct EmbeddingNormBackward : EmbeddingNormSizes {
  const void* gy;        // [n, C]
  const int64_t* order;  // [n]: places of the tokens, sorted by id, those of one id in order
  const void *table, *weight;
  void* gtable;  // [V, C], full of zeros
  // [tasks, 2, C] of T: what the gradients of weight and bias are made of; the caller sums
  void* sums;
};

// Tokens [begin, end).
void embedding_norm_forward_cpu(const EmbeddingNormForward& params, int64_t begin, int64_t end);

// Tasks [begin, end), each of kDistinct distinct ids. starts: of every distinct id where its places
// begin in order, and behind the last one n. ids: the distinct ones.
constexpr int64_t kDistinct = 64;
void embedding_norm_backward_cpu(const EmbeddingNormBackward& params, const int64_t* ids,
                                 const int64_t* starts, int64_t distinct, int64_t begin,
                                 int64_t end);

}  // namespace rwkv
