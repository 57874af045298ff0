// The CUDA launchers of AdamW; no torch. They return 0, CUDA's number of an error, or kUnsupported
// for fp64. The table lies on the device.
#pragma once

#include "../common/params/launch_options.h"
#include "adamw.h"

extern "C" {
int rwkv_adamw_norm_cuda(const rwkv::AdamwNorm& params, void* stream);
int rwkv_adamw_update_cuda(const rwkv::AdamwUpdate& params, void* stream);
}
