// The kernels behind rwkv::sigmoid_gate_forward and sigmoid_gate_backward; plain C++, no torch.
#pragma once

#include "../common/params/pointwise_params.h"

namespace rwkv {

using SigmoidGateForward = Pointwise<2, 1>;   // r, y -> o
using SigmoidGateBackward = Pointwise<3, 2>;  // go, r, y -> gr, gy

// Elements [begin, end).
void sigmoid_gate_forward_cpu(const SigmoidGateForward& params, int64_t begin, int64_t end);
void sigmoid_gate_backward_cpu(const SigmoidGateBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
