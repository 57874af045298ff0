// The CUDA launcher of RWKV-5's and 6's pieces; no torch. What it returns:
// common/params/launch_options.h.
#pragma once

#include "../common/params/launch_options.h"
#include "wkv5_6_piece.h"

extern "C" {
// Floats of memory that it works in: none.
int64_t rwkv_wkv5_6_piece_run_floats(const rwkv::Wkv5_6Piece& params,
                                     const rwkv::LaunchOptions& options);
// Writes params.matrix alone: the decays of all tokens are a sum over w, for which torch serves.
int rwkv_wkv5_6_piece_run_cuda(const rwkv::Wkv5_6Piece& params, const rwkv::LaunchOptions& options,
                               float* memory, void* stream);
}
