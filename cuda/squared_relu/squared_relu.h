// The kernels behind rwkv::squared_relu_forward and squared_relu_backward; plain C++, no torch.
#pragma once

#include "../common/params/pointwise_params.h"

namespace rwkv {

using SquaredReluForward = Pointwise<1, 1>;   // p -> z
using SquaredReluBackward = Pointwise<2, 1>;  // gz, p -> gp

// Elements [begin, end).
void squared_relu_forward_cpu(const SquaredReluForward& params, int64_t begin, int64_t end);
void squared_relu_backward_cpu(const SquaredReluBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
