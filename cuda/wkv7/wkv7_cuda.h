// The CUDA launchers of WKV-7; no torch. What they return: common/params/launch_options.h.
#pragma once

#include "../common/params/launch_options.h"
#include "wkv7.h"

extern "C" {
// Floats of memory that each pass works in.
int64_t rwkv_wkv7_forward_floats(const rwkv::Wkv7Forward& params,
                                 const rwkv::LaunchOptions& options);
int64_t rwkv_wkv7_backward_floats(const rwkv::Wkv7Backward& params,
                                  const rwkv::LaunchOptions& options);
int rwkv_wkv7_forward_cuda(const rwkv::Wkv7Forward& params, const rwkv::LaunchOptions& options,
                           float* memory, void* stream);
int rwkv_wkv7_backward_cuda(const rwkv::Wkv7Backward& params, const rwkv::LaunchOptions& options,
                            float* memory, void* stream);
}
