// The CUDA launchers of the squared relu; no torch. They return 0, CUDA's number of an error, or
// kUnsupported for fp64. Tensors start at multiples of 16 bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "squared_relu.h"

extern "C" {
int rwkv_squared_relu_forward_cuda(const rwkv::SquaredReluForward& params, void* stream);
int rwkv_squared_relu_backward_cuda(const rwkv::SquaredReluBackward& params, void* stream);
}
