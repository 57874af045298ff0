// The CUDA launchers of WKV-5; no torch. What they return: common/params/launch_options.h.
#pragma once

#include "../common/params/launch_options.h"
#include "../wkv5_6/wkv5_6_params.h"

extern "C" {
// Floats of memory that each pass works in.
int64_t rwkv_wkv5_forward_floats(const rwkv::Wkv5_6Forward& params,
                                 const rwkv::LaunchOptions& options);
int64_t rwkv_wkv5_backward_floats(const rwkv::Wkv5_6Backward& params,
                                  const rwkv::LaunchOptions& options);
int rwkv_wkv5_forward_cuda(const rwkv::Wkv5_6Forward& params, const rwkv::LaunchOptions& options,
                           float* memory, void* stream);
int rwkv_wkv5_backward_cuda(const rwkv::Wkv5_6Backward& params, const rwkv::LaunchOptions& options,
                            float* memory, void* stream);
}
