// Runs a pointwise kernel on torch's threads.
#pragma once

#include <algorithm>
#include <array>

#include "../torch/pointwise_host.h"
#include "parallel.h"

namespace rwkv {

// Elements of a task: every tensor's share is a few pages.
constexpr int64_t kPointwiseTask = 4096;

// kernel(params, begin, end): the elements [begin, end). work: steps per element.
template <int kOutputs, int kInputs, typename Kernel>
std::array<at::Tensor, kOutputs> run_pointwise_cpu(
    const std::array<at::Tensor, kInputs>& inputs, const std::array<const char*, kInputs>& names,
    int64_t work, Kernel kernel) {
  const auto call = pointwise_call<kOutputs, kInputs>(inputs, names);
  const auto& p = call.params;
  const int64_t tasks = (p.count + kPointwiseTask - 1) / kPointwiseTask;
  share_tasks(tasks, kPointwiseTask * work, [&](int64_t begin, int64_t end) {
    kernel(p, begin * kPointwiseTask, std::min(end * kPointwiseTask, p.count));
  });
  return call.outputs;
}

}  // namespace rwkv
