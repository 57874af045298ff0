// CPU kernels of AdamW over all tensors of a model: squares of gradients, then the update
//
//   g = c g    p = p kept    m = m + (1 - beta1)(g - m)    v = beta2 v + (1 - beta2) g^2
//   p = p - step_size m / (sqrt(v) / root + eps)           weight = p, rounded
//
// in the order of operations of torch's fused AdamW. A task is a chunk of one tensor, taken in
// runs that stay in the first-level cache.
#include "adamw.h"

#include <algorithm>
#include <cmath>

#include "../common/cpu/typed_rows.h"

namespace rwkv {
namespace {

// Sums side by side, so that the order of adding is the same with vectors of any width.
constexpr int64_t kAdamwSums = 64;

template <typename T> double adamw_run_squares(const T* g, int64_t count) {
  T sums[kAdamwSums] = {};
  int64_t i = 0;
  for (; i + kAdamwSums <= count; i += kAdamwSums) {
    for (int64_t j = 0; j < kAdamwSums; ++j) sums[j] += g[i + j] * g[i + j];
  }
  for (; i < count; ++i) sums[i % kAdamwSums] += g[i] * g[i];
  for (int64_t half = kAdamwSums / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return static_cast<double>(sums[0]);
}

// The numbers of an update that all elements of a tensor share.
template <typename T> struct AdamwNumbers {
  T factor, kept, share, beta2, share2, step_size, root, eps;
  bool small;

  AdamwNumbers(const AdamwUpdate& p, const AdamwTensor& tensor)
      : factor(static_cast<T>(adamw_factor(p))),
        kept(static_cast<T>(tensor.kept)),
        share(static_cast<T>(1.0 - p.beta1)),
        beta2(static_cast<T>(p.beta2)),
        share2(static_cast<T>(1.0 - p.beta2)),
        step_size(static_cast<T>(-tensor.step_size)),
        root(static_cast<T>(tensor.root)),
        eps(static_cast<T>(p.eps)),
        // Interpolates from the nearer end.
        small(share < T(0.5)) {}
};

template <typename T>
void adamw_run(const AdamwNumbers<T>& n, int64_t count, const T* __restrict g, T* __restrict p,
               T* __restrict m, T* __restrict v) {
  const T share = n.small ? n.share : n.share - T(1);
  for (int64_t i = 0; i < count; ++i) {
    const T clipped = g[i] * n.factor;
    const T moment = share * (clipped - m[i]) + (n.small ? m[i] : clipped);
    const T square = v[i] * n.beta2 + n.share2 * clipped * clipped;
    m[i] = moment;
    v[i] = square;
    p[i] = p[i] * n.kept + n.step_size * moment / (std::sqrt(square) / n.root + n.eps);
  }
}

// The gradients [at, at + count) of a chunk: where they lie, or widened in `buffer`.
template <typename T>
const T* adamw_gradients(const AdamwTensor& tensor, int64_t at, int64_t count, T* buffer) {
  if (tensor.gradient_dtype == kDTypeOf<T>) return static_cast<const T*>(tensor.gradient) + at;
  load_row(tensor.gradient, tensor.gradient_dtype, at, count, buffer);
  return buffer;
}

template <typename T> void adamw_chunk_update(const AdamwUpdate& p, const AdamwChunk& chunk) {
  const AdamwTensor& tensor = *chunk.tensor;
  const AdamwNumbers<T> numbers(p, tensor);
  T buffer[kAdamwRun];
  for (int64_t at = chunk.begin; at < chunk.end; at += kAdamwRun) {
    const int64_t count = std::min(kAdamwRun, chunk.end - at);
    const T* const g = adamw_gradients(tensor, at, count, buffer);
    T* const parameter = static_cast<T*>(tensor.parameter) + at;
    adamw_run(numbers, count, g, parameter, static_cast<T*>(tensor.exp_avg) + at,
              static_cast<T*>(tensor.exp_avg_sq) + at);
    if (tensor.weight != nullptr) {
      store_row(tensor.weight, tensor.weight_dtype, at, count, parameter);
    }
  }
}

template <typename T> double adamw_chunk_squares(const AdamwChunk& chunk) {
  T buffer[kAdamwRun];
  double sum = 0.0;
  for (int64_t at = chunk.begin; at < chunk.end; at += kAdamwRun) {
    const int64_t count = std::min(kAdamwRun, chunk.end - at);
    sum += adamw_run_squares(adamw_gradients(*chunk.tensor, at, count, buffer), count);
  }
  return sum;
}

}  // namespace

double adamw_squares_cpu(const AdamwTable& table, int64_t number) {
  const AdamwChunk chunk = adamw_chunk(table, number);
  return chunk.tensor->gradient_dtype == DType::kDouble ? adamw_chunk_squares<double>(chunk)
                                                        : adamw_chunk_squares<float>(chunk);
}

void adamw_update_cpu(const AdamwUpdate& p, int64_t number) {
  const AdamwChunk chunk = adamw_chunk(p.table, number);
  if (chunk.tensor->dtype == DType::kDouble) adamw_chunk_update<double>(p, chunk);
  else adamw_chunk_update<float>(p, chunk);
}

}  // namespace rwkv
