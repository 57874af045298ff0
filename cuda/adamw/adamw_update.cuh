// The update of AdamW in place, formulas as in adamw_cpu.cpp. A block has a chunk of one tensor, a
// thread 8 elements at a time: with bf16 gradients and weights 30 bytes an element, which is all
// there is to do; what the kernel gives up is the full use of blocks by tensors of few elements.
#pragma once

#include "adamw_norm.cuh"

namespace rwkv {

// The numbers that all elements of a chunk share.
struct AdamwShared {
  float factor, kept, share, beta2, share2, step_size, root, eps;
  bool small;

  __device__ AdamwShared(const AdamwUpdate& p, const AdamwTensor& tensor)
      : factor(static_cast<float>(adamw_factor(p))),
        kept(static_cast<float>(tensor.kept)),
        share(static_cast<float>(1.0 - p.beta1)),
        beta2(static_cast<float>(p.beta2)),
        share2(static_cast<float>(1.0 - p.beta2)),
        step_size(static_cast<float>(-tensor.step_size)),
        root(static_cast<float>(tensor.root)),
        eps(static_cast<float>(p.eps)),
        small(share < 0.5f) {}

  __device__ void update(float g, float& p, float& m, float& v) const {
    const float clipped = g * factor;
    // Interpolates from the nearer end.
    m = small ? share * (clipped - m) + m : (share - 1.0f) * (clipped - m) + clipped;
    v = v * beta2 + share2 * clipped * clipped;
    p = p * kept + step_size * m / (sqrtf(v) / root + eps);
  }
};

// Elements [at, min(at + 8, end)).
__device__ inline void adamw_store(void* base, int64_t at, int64_t end, DType dtype, bool aligned,
                                   const Vec8& x) {
  if (aligned && at + kVec8 <= end) return store_vec8(base, at, dtype, x);
  for (int i = 0; i < kVec8 && at + i < end; ++i) {
    if (dtype == DType::kFloat) store_element<DType::kFloat>(base, at + i, x.at[i]);
    else if (dtype == DType::kBFloat16) store_element<DType::kBFloat16>(base, at + i, x.at[i]);
    else store_element<DType::kHalf>(base, at + i, x.at[i]);
  }
}

__global__ void __launch_bounds__(kAdamwThreads) adamw_update_kernel(const AdamwUpdate params) {
  const AdamwChunk chunk = adamw_chunk(params.table, blockIdx.x);
  const AdamwTensor tensor = *chunk.tensor;
  const AdamwShared shared(params, tensor);
  const bool aligned = tensor.aligned != 0;
  for (int64_t at = chunk.begin + static_cast<int64_t>(threadIdx.x) * kVec8; at < chunk.end;
       at += kAdamwThreads * kVec8) {
    const auto load = [&](const void* base, DType dtype) {
      return adamw_load(base, at, chunk.end, dtype, aligned);
    };
    const Vec8 g = load(tensor.gradient, tensor.gradient_dtype);
    Vec8 p = load(tensor.parameter, DType::kFloat);
    Vec8 m = load(tensor.exp_avg, DType::kFloat), v = load(tensor.exp_avg_sq, DType::kFloat);
#pragma unroll
    for (int i = 0; i < kVec8; ++i) shared.update(g.at[i], p.at[i], m.at[i], v.at[i]);
    adamw_store(tensor.parameter, at, chunk.end, DType::kFloat, aligned, p);
    adamw_store(tensor.exp_avg, at, chunk.end, DType::kFloat, aligned, m);
    adamw_store(tensor.exp_avg_sq, at, chunk.end, DType::kFloat, aligned, v);
    if (tensor.weight != nullptr) {
      adamw_store(tensor.weight, at, chunk.end, tensor.weight_dtype, aligned, p);
    }
  }
}

}  // namespace rwkv
