// Host side of AdamW, the same for every device: checks the tensors of a call and lists them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <optional>
#include <vector>

#include "../common/torch/check.h"
#include "adamw.h"

namespace rwkv {

// The tensors of a call. gradients: contiguous; keeps copies of those that were not.
struct AdamwCall {
  std::vector<at::Tensor> gradients;
  std::vector<AdamwTensor> tensors;
  int64_t chunks = 0;

  AdamwTable table(const AdamwTensor* where) const {
    return {where, static_cast<int64_t>(tensors.size()), chunks};
  }

  void add(const at::Tensor& gradient, AdamwTensor tensor) {
    tensor.gradient = gradient.const_data_ptr();
    tensor.gradient_dtype = dtype_of(gradient, "a gradient");
    tensor.count = gradient.numel();
    tensor.first_chunk = chunks;
    tensor.aligned = 1;
    for (const void* at : {tensor.gradient, static_cast<const void*>(tensor.parameter),
                           static_cast<const void*>(tensor.exp_avg),
                           static_cast<const void*>(tensor.exp_avg_sq),
                           static_cast<const void*>(tensor.weight)}) {
      if (reinterpret_cast<uintptr_t>(at) % 16 != 0) tensor.aligned = 0;
    }
    chunks += (tensor.count + kAdamwChunk - 1) / kAdamwChunk;
    // A tensor without elements has no chunk, and the search for a chunk's tensor passes it over.
    if (tensor.count == 0) return;
    gradients.push_back(gradient);
    tensors.push_back(tensor);
  }
};

inline AdamwCall adamw_norm_call(at::TensorList gradients) {
  AdamwCall call;
  TORCH_CHECK(gradients.size() > 0, "adamw_norm: there are no gradients");
  for (const at::Tensor& gradient : gradients) {
    TORCH_CHECK(gradient.device() == gradients[0].device(), "gradients must be on one device, got ",
                gradient.device(), " and ", gradients[0].device());
    call.add(gradient.contiguous(), {});
  }
  return call;
}

// What adamw_update is given, see its schema.
struct AdamwGiven {
  at::TensorList parameters, gradients, exp_avgs, exp_avg_sqs, weights, steps;
  at::ArrayRef<double> rates, decays;
  double beta1, beta2, eps;
};

// A tensor that the kernels write in place.
inline void* adamw_writable(const at::Tensor& x, const char* name, const at::Tensor& parameter) {
  check_shape(x, name, "as the parameter", parameter.sizes());
  TORCH_CHECK(x.device() == parameter.device(), name, " must be on ", parameter.device(),
              " like its parameter, got ", x.device());
  TORCH_CHECK(x.is_contiguous(), name, " must be contiguous");
  return x.mutable_data_ptr();
}

inline void adamw_check_counts(const AdamwGiven& given) {
  const size_t count = given.parameters.size();
  for (const size_t size : {given.gradients.size(), given.exp_avgs.size(),
                            given.exp_avg_sqs.size(), given.steps.size(), given.rates.size(),
                            given.decays.size(),
                            given.weights.empty() ? count : given.weights.size()}) {
    TORCH_CHECK(size == count, "adamw_update: ", count, " parameters and ", size,
                " of something else");
  }
}

// Counts the step of every tensor, and lists the tensors with what follows from it.
inline AdamwCall adamw_update_call(const AdamwGiven& given) {
  adamw_check_counts(given);
  AdamwCall call;
  for (size_t i = 0; i < given.parameters.size(); ++i) {
    const at::Tensor &parameter = given.parameters[i], &gradient = given.gradients[i];
    check_shape(gradient, "a gradient", "as the parameter", parameter.sizes());
    check_dtype(parameter, "a parameter", computing_type(gradient));
    check_dtype(given.exp_avgs[i], "exp_avg", parameter.scalar_type());
    check_dtype(given.exp_avg_sqs[i], "exp_avg_sq", parameter.scalar_type());
    const at::Tensor& step = given.steps[i];
    check_dtype(step, "step", at::kFloat);
    TORCH_CHECK(step.device().is_cpu() && step.numel() == 1, "step must be one number on the CPU");
    AdamwTensor tensor = {};
    tensor.dtype = dtype_of(parameter, "a parameter");
    tensor.parameter = adamw_writable(parameter, "a parameter", gradient);
    tensor.exp_avg = adamw_writable(given.exp_avgs[i], "exp_avg", parameter);
    tensor.exp_avg_sq = adamw_writable(given.exp_avg_sqs[i], "exp_avg_sq", parameter);
    if (!given.weights.empty()) {
      tensor.weight = adamw_writable(given.weights[i], "a weight", parameter);
      tensor.weight_dtype = dtype_of(given.weights[i], "a weight");
    }
    const double t = *step.mutable_data_ptr<float>() += 1.0f;
    tensor.kept = 1.0 - given.rates[i] * given.decays[i];
    tensor.step_size = given.rates[i] / (1.0 - std::pow(given.beta1, t));
    tensor.root = std::sqrt(1.0 - std::pow(given.beta2, t));
    call.add(gradient.contiguous(), tensor);
  }
  return call;
}

// limit: of the norm of the gradients that `norm` holds.
inline AdamwUpdate adamw_update_params(const AdamwGiven& given, const AdamwTable& table,
                                       const std::optional<at::Tensor>& norm, double limit) {
  if (!norm.has_value()) return {table, given.beta1, given.beta2, given.eps, nullptr, limit};
  check_dtype(*norm, "norm", at::kDouble);
  TORCH_CHECK(norm->numel() == 1 && norm->device() == given.parameters[0].device(),
              "norm must be one number on ", given.parameters[0].device());
  return {table, given.beta1, given.beta2, given.eps, norm->const_data_ptr<double>(), limit};
}

}  // namespace rwkv
