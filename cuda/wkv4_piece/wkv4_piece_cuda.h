// The CUDA launcher of WKV-4's pieces; no torch. What it returns: common/params/launch_options.h.
#pragma once

#include "../common/params/launch_options.h"
#include "wkv4_piece.h"

extern "C" {
// Floats of memory that it works in.
int64_t rwkv_wkv4_piece_run_floats(const rwkv::Wkv4Piece& params,
                                   const rwkv::LaunchOptions& options);
int rwkv_wkv4_piece_run_cuda(const rwkv::Wkv4Piece& params, const rwkv::LaunchOptions& options,
                             float* memory, void* stream);
}
