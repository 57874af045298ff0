// The CUDA launchers of WKV-4; no torch. What they return: common/params/launch_options.h. Any
// width; states for the backward pass are kept every 16 tokens.
#pragma once

#include "../common/params/launch_options.h"
#include "wkv4.h"

extern "C" {
// Floats of memory that each pass works in.
int64_t rwkv_wkv4_forward_floats(const rwkv::Wkv4Forward& params,
                                 const rwkv::LaunchOptions& options);
int64_t rwkv_wkv4_backward_floats(const rwkv::Wkv4Backward& params,
                                  const rwkv::LaunchOptions& options);
int rwkv_wkv4_forward_cuda(const rwkv::Wkv4Forward& params, const rwkv::LaunchOptions& options,
                           float* memory, void* stream);
int rwkv_wkv4_backward_cuda(const rwkv::Wkv4Backward& params, const rwkv::LaunchOptions& options,
                            float* memory, void* stream);
}
