// CUDA kernels of the sigmoid gate: o = s(r) y, gr = go y s'(r), gy = go s(r).
#include "sigmoid_gate_cuda.h"

#include "../common/gpu/pointwise_kernel.cuh"
#include "../common/gpu/lane_sigmoid.cuh"

namespace rwkv {
namespace {

struct SigmoidGate {
  __device__ static PerTensor<1> of(const PerTensor<2>& x) {
    return {{LaneSigmoid(x.at[0]).of_z * x.at[1]}};
  }
};

struct SigmoidGateGradient {
  __device__ static PerTensor<2> of(const PerTensor<3>& x) {
    const float go = x.at[0], y = x.at[2];
    const LaneSigmoid gate(x.at[1]);
    return {{go * y * gate.slope(), go * gate.of_z}};
  }
};

}  // namespace
}  // namespace rwkv

int rwkv_sigmoid_gate_forward_cuda(const rwkv::SigmoidGateForward& params, void* stream) {
  return rwkv::launch_pointwise<rwkv::SigmoidGate>(params, stream);
}

int rwkv_sigmoid_gate_backward_cuda(const rwkv::SigmoidGateBackward& params, void* stream) {
  return rwkv::launch_pointwise<rwkv::SigmoidGateGradient>(params, stream);
}
