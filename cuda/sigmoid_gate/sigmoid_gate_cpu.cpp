// CPU kernels of the sigmoid gate: o = s(r) y, gr = go y s'(r), gy = go s(r).
#include "sigmoid_gate.h"

#include "../common/cpu/pointwise_walk.h"
#include "../common/cpu/sigmoid.h"

namespace rwkv {

void sigmoid_gate_forward_cpu(const SigmoidGateForward& params, int64_t begin, int64_t end) {
  walk_pointwise(params, begin, end, []<typename T>(const VecPerTensor<T, 2>& x) {
    return VecPerTensor<T, 1>{{Sigmoid<T>(x.at[0]).of_z * x.at[1]}};
  });
}

void sigmoid_gate_backward_cpu(const SigmoidGateBackward& params, int64_t begin, int64_t end) {
  walk_pointwise(params, begin, end, []<typename T>(const VecPerTensor<T, 3>& x) {
    const Vec<T> go = x.at[0], y = x.at[2];
    const Sigmoid<T> gate(x.at[1]);
    return VecPerTensor<T, 2>{{go * y * gate.slope(), go * gate.of_z}};
  });
}

}  // namespace rwkv
