// The CUDA launchers of the sigmoid gate; no torch. They return 0, CUDA's number of an error, or
// kUnsupported for fp64. Tensors start at multiples of 16 bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "sigmoid_gate.h"

extern "C" {
int rwkv_sigmoid_gate_forward_cuda(const rwkv::SigmoidGateForward& params, void* stream);
int rwkv_sigmoid_gate_backward_cuda(const rwkv::SigmoidGateBackward& params, void* stream);
}
