// The kernels behind rwkv::adamw_norm and adamw_update; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"

namespace rwkv {

// Elements of a task. Squares are summed inside a task and then over tasks in a tree over their
// numbers, so this constant fixes the result, whatever the number of threads.
constexpr int64_t kAdamwChunk = 65536;
// Elements whose squares are summed in fp32; everything above in fp64.
constexpr int64_t kAdamwRun = 1024;

// One tensor of a call; contiguous. "T" is double if the parameter is, else float.
struct AdamwTensor {
  const void* gradient;
  void *parameter, *exp_avg, *exp_avg_sq;  // of T
  void* weight;                            // the parameter, rounded; null: there is none
  int64_t count, first_chunk;              // elements; chunks of the tensors before this one
  double kept, step_size, root;  // 1 - lr decay; lr / (1 - beta1^t); sqrt(1 - beta2^t)
  DType gradient_dtype, dtype, weight_dtype;
  int aligned;  // whether all tensors begin at multiples of 16 bytes
};

// The tensors of a call, and the chunks of all of them.
struct AdamwTable {
  const AdamwTensor* tensors;
  int64_t count, chunks;
};

struct AdamwNorm {
  AdamwTable table;
  double* squares;  // [chunks]
  double* norm;     // one number
};

struct AdamwUpdate {
  AdamwTable table;
  double beta1, beta2, eps;
  const double* norm;  // of all gradients; null: they are not clipped
  double limit;        // of the norm
};

// The tensor of a chunk, and the chunk's elements [begin, end) in it.
struct AdamwChunk {
  const AdamwTensor* tensor;
  int64_t begin, end;
};

#if defined(__CUDACC__) || defined(RWKV_HOST_SHIM)
#define RWKV_ADAMW_BOTH __host__ __device__
#else
#define RWKV_ADAMW_BOTH
#endif

RWKV_ADAMW_BOTH inline AdamwChunk adamw_chunk(const AdamwTable& table, int64_t chunk) {
  int64_t first = 0, behind = table.count;
  while (behind - first > 1) {
    const int64_t middle = first + (behind - first) / 2;
    if (table.tensors[middle].first_chunk <= chunk) first = middle;
    else behind = middle;
  }
  const AdamwTensor& tensor = table.tensors[first];
  const int64_t begin = (chunk - tensor.first_chunk) * kAdamwChunk;
  const int64_t left = tensor.count - begin;
  return {&tensor, begin, begin + (left < kAdamwChunk ? left : kAdamwChunk)};
}

// The factor that brings gradients of this norm within the limit, as torch's clip_grad_norm_ has
// it; NaN stays NaN.
RWKV_ADAMW_BOTH inline double adamw_factor(const AdamwUpdate& p) {
  if (p.norm == nullptr) return 1.0;
  const double factor = p.limit / (*p.norm + 1e-6);
  return factor > 1.0 ? 1.0 : factor;
}

// The sum of squares of a chunk's gradients.
double adamw_squares_cpu(const AdamwTable& table, int64_t chunk);
void adamw_update_cpu(const AdamwUpdate& params, int64_t chunk);

}  // namespace rwkv
