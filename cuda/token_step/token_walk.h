// One token of a few sequences on its way through the blocks of a model: where the formulas of the
// versions get their parameters, in the order in which they read them, and rows of working memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <tuple>

#include "../common/cpu/parallel.h"
#include "../common/cpu/typed_rows.h"
#include "../common/torch/check.h"
#include "../matvec/matvec.h"
#include "token_step.h"

namespace rwkv::step {

using at::Tensor;

// Of all blocks in a row.  vectors: in fp32.  matrices: [N, K].  scales: of int8 matrices; of
// others without elements.  eps: of all norms, as they follow one another.
struct Parameters {
  at::TensorList vectors, matrices, scales;
  c10::ArrayRef<double> eps;
};

class TokenWalk {
  // Numbers in a line of the cache.
  static constexpr int64_t kAligned = 16;

  const Parameters& parameters_;
  const Tensor memory_;
  float* free_ = nullptr;
  size_t vector_ = 0, matrix_ = 0, eps_ = 0;

 public:
  const int64_t batch, width;
  // The residual stream, [B, C], in fp32 from the first block to the last.
  float* const stream;
  // The first block's value, [B, 1, H, N], where a version hands it on.
  Tensor first_value;

  TokenWalk(const Parameters& parameters, int64_t blocks, int64_t batch, int64_t width)
      : parameters_(parameters),
        memory_(at::empty({batch * numbers(parameters, blocks, width)}, at::kFloat)), batch(batch),
        width(width), stream(memory_.mutable_data_ptr<float>()) {}

  // Forgets the rows of the block before.
  void start_block() { free_ = stream + batch * (width + kAligned); }

  // [B, n]
  float* rows(int64_t n) {
    float* const found = free_;
    free_ += (batch * n + kAligned - 1) / kAligned * kAligned;
    return found;
  }

  Tensor tensor(at::IntArrayRef sizes) const { return at::empty(sizes, memory_.options()); }

  double eps() { return parameters_.eps[eps_++]; }

  const Tensor& vector_tensor() { return parameters_.vectors[vector_++]; }
  const float* vector() { return vector_tensor().const_data_ptr<float>(); }

  const Tensor& next_matrix() const { return parameters_.matrices[matrix_]; }

  // Returns x times the next matrix, transposed, written to y if given. x: [B, K].
  float* product(const float* x, float* y = nullptr) {
    const Tensor& weight = parameters_.matrices[matrix_];
    const Tensor& scale = parameters_.scales[matrix_++];
    Matvec p;
    p.batch = batch, p.outputs = weight.size(0), p.inputs = weight.size(1);
    p.scale = scale.numel() == 0 ? nullptr : scale.const_data_ptr<float>();
    p.dtype = p.scale != nullptr ? DType::kFloat : dtype_of(weight, "weight");
    p.x = x, p.weight = weight.const_data_ptr(), p.y = y == nullptr ? rows(p.outputs) : y;
    const int64_t tasks = (p.outputs + kMatvecTaskRows - 1) / kMatvecTaskRows;
    share_tasks(tasks, kMatvecTaskRows * p.inputs,
                [&](int64_t begin, int64_t end) { matvec_forward_cpu(p, begin, end); });
    return p.y;
  }

  // Returns the norm of the stream, [B, C], with the next two vectors.
  Tensor normal() {
    const Tensor found = tensor({batch, width});
    const float *weight = vector(), *bias = vector();
    const double eps = this->eps();
    float* const y = found.mutable_data_ptr<float>();
    for (int64_t b = 0; b < batch; ++b) {
      normalise(stream + b * width, weight, bias, eps, width, y + b * width);
    }
    return found;
  }

  // Returns x mixed with the token before it by the next vector and, if given, by `more`: [B, C].
  float* mixed(const Tensor& x, const Tensor& last, const float* more = nullptr) {
    const float* const share = vector();
    float* const y = rows(width);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t at = b * width;
      mix(x.const_data_ptr<float>() + at, last.const_data_ptr<float>() + at, share,
          more == nullptr ? nullptr : more + at, width, y + at);
    }
    return y;
  }

  // Returns every head of y, [B, 1, H, N], with its norm, by the next two vectors: [B, H N].
  float* head_normal(const Tensor& y) {
    const int64_t N = y.size(3), heads = y.size(2);
    const float *weight = vector(), *bias = vector(), *from = y.const_data_ptr<float>();
    const double eps = this->eps();
    float* const found = rows(heads * N);
    for (int64_t n = 0; n < batch * heads; ++n) {
      const int64_t channel = n % heads * N;
      normalise(from + n * N, weight + channel, bias + channel, eps, N, found + n * N);
    }
    return found;
  }

 private:
  // Of the stream and of one block, a sequence: the results of all its products, twice the blocks'
  // mean since the first one may have fewer, and rows as wide as the stream.
  static int64_t numbers(const Parameters& parameters, int64_t blocks, int64_t width) {
    int64_t products = 0;
    for (const Tensor& matrix : parameters.matrices) products += matrix.size(0) + kAligned;
    return 16 * (width + kAligned) + 2 * products / blocks;
  }
};

// The forward operator of a recurrence, which lies in a library of its own.
template <typename Signature> auto recurrence(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace rwkv::step
