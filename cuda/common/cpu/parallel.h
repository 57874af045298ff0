// Shares the heads of a call among torch's threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>

#include "denormals.h"

namespace rwkv {

// kernel: which one the caller asks for, 0 for the only one there is here.
inline void check_cpu_kernel(int64_t kernel) {
  TORCH_CHECK(kernel == 0, "a CPU has one kernel per operator, number 0; got ", kernel);
}

// run(begin, end) for pieces of [0, tasks). work: steps per task; a piece below about 100 000 steps
// is not worth waking a thread.
template <typename Run> void share_tasks(int64_t tasks, int64_t work, Run run) {
  const int64_t least = std::max<int64_t>(1, 100000 / std::max<int64_t>(work, 1));
  at::parallel_for(0, tasks, least, [&](int64_t begin, int64_t end) {
    const FlushToZeroGuard flush_to_zero;
    run(begin, end);
  });
}

// kernel(params, most, begin, end) over the heads of a call in groups of at most `most`: four, or
// fewer where that leaves threads without work or states outside the cache.
template <typename Params, typename Kernel> void share_heads(const Params& p, Kernel kernel) {
  const int64_t per_thread = p.batch * p.heads / (2 * at::get_num_threads());
  const int64_t fitting = std::clamp<int64_t>(65536 / (p.size * p.size), 1, 4);
  const int64_t wanted = std::min(std::clamp<int64_t>(per_thread, 1, fitting), p.heads);
  const int64_t groups = (p.heads + wanted - 1) / wanted;
  const int64_t most = (p.heads + groups - 1) / groups;
  share_tasks(p.batch * groups, most * p.time * p.size * p.size,
              [&](int64_t begin, int64_t end) { kernel(p, most, begin, end); });
}

// The sum over the first axis, row after row, so that it does not depend on the number of threads.
template <typename T> void sum_rows_into(const at::Tensor& rows, at::Tensor& sum) {
  const int64_t count = sum.numel();
  const T* from = rows.const_data_ptr<T>();
  T* to = sum.mutable_data_ptr<T>();
  for (int64_t b = 0; b < rows.size(0); ++b) {
    for (int64_t i = 0; i < count; ++i) to[i] += from[b * count + i];
  }
}

inline at::Tensor sum_over_batch(const at::Tensor& rows) {
  at::Tensor sum = at::zeros(rows.sizes().slice(1), rows.options());
  if (rows.scalar_type() == at::kDouble) sum_rows_into<double>(rows, sum);
  else sum_rows_into<float>(rows, sum);
  return sum;
}

}  // namespace rwkv
