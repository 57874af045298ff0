// The CUDA launcher of WKV-7's pieces; no torch. What it returns: common/params/launch_options.h.
#pragma once

#include "../common/params/launch_options.h"
#include "wkv7_piece.h"

extern "C" {
// Floats of memory that it works in: none.
int64_t rwkv_wkv7_piece_run_floats(const rwkv::Wkv7Piece& params,
                                   const rwkv::LaunchOptions& options);
int rwkv_wkv7_piece_run_cuda(const rwkv::Wkv7Piece& params, const rwkv::LaunchOptions& options,
                             float* memory, void* stream);
}
