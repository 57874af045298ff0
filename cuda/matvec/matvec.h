// The kernel behind rwkv::matvec_forward; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"

namespace rwkv {

constexpr int kMostMatvecRows = 8;
// Rows of the weight in one task.
constexpr int64_t kMatvecTaskRows = 16;

// y[b][n] = scale[n] sum over k of x[b][k] weight[n][k], in fp32.
struct Matvec {
  int64_t batch, outputs, inputs;
  DType dtype;         // of weight, unless it has a scale
  const float* x;      // [batch, inputs]
  const void* weight;  // [outputs, inputs]: dtype, or int8_t with a scale
  const float* scale;  // [outputs], or null: 1
  float* y;            // [batch, outputs]
};

// Tasks [begin, end) of kMatvecTaskRows rows of the weight each.
void matvec_forward_cpu(const Matvec& params, int64_t begin, int64_t end);

}  // namespace rwkv
