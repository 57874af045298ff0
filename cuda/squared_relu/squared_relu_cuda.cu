// CUDA kernels of the squared relu: z = relu(p)^2, gp = 2 relu(p) gz. NaN in p passes through.
#include "squared_relu_cuda.h"

#include "../common/gpu/pointwise_kernel.cuh"

namespace rwkv {
namespace {

struct SquaredRelu {
  __device__ static PerTensor<1> of(const PerTensor<1>& x) {
    const float r = x.at[0] <= 0.0f ? 0.0f : x.at[0];
    return {{r * r}};
  }
};

struct SquaredReluGradient {
  __device__ static PerTensor<1> of(const PerTensor<2>& x) {
    const float gz = x.at[0], p = x.at[1];
    return {{p <= 0.0f ? 0.0f : 2.0f * p * gz}};
  }
};

}  // namespace
}  // namespace rwkv

int rwkv_squared_relu_forward_cuda(const rwkv::SquaredReluForward& params, void* stream) {
  return rwkv::launch_pointwise<rwkv::SquaredRelu>(params, stream);
}

int rwkv_squared_relu_backward_cuda(const rwkv::SquaredReluBackward& params, void* stream) {
  return rwkv::launch_pointwise<rwkv::SquaredReluGradient>(params, stream);
}
