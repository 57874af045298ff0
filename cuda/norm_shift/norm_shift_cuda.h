// The CUDA launchers of norm_shift; no torch. They return 0, CUDA's number of an error, or
// kUnsupported for fp64 and for widths that one block of threads cannot hold. Where the width is a
// multiple of 8, tensors start at multiples of 16 bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "norm_shift.h"

namespace rwkv {

// The widest rows: of 8 channels a thread, or of one where the width is no multiple of 8.
constexpr int64_t kNormShiftWidest = 4096, kNormShiftWidestOdd = 512;

}  // namespace rwkv

extern "C" {
int rwkv_norm_shift_forward_cuda(const rwkv::NormShiftForward& params, void* stream);
// params.sums: [blocks of tokens, ...], working memory; their sum goes to params.total.
int rwkv_norm_shift_backward_cuda(const rwkv::NormShiftBackward& params, void* stream);
}
