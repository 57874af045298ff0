// The CUDA launchers of the head's loss; no torch. They return 0, CUDA's number of an error, or
// kUnsupported for fp64 and for vocabularies of 2^31 tokens and more. Where V is a multiple of 8,
// logits and extra start at multiples of 16 bytes.
#pragma once

#include "../common/params/launch_options.h"
#include "head_loss.h"

extern "C" {
int rwkv_head_loss_rows_cuda(const rwkv::HeadLossRows& params, void* stream);
int rwkv_head_loss_mean_cuda(const rwkv::HeadLossMean& params, void* stream);
}
