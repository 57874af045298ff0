// The kernels behind rwkv::wkv5_forward and wkv5_backward; plain C++, no torch.
#pragma once

#include "../common/outer_params.h"

namespace rwkv {

// Tasks [begin, end), each one head of one batch row: batch row * H + head.
void wkv5_forward_cpu(const OuterForward& params, int64_t begin, int64_t end);
void wkv5_backward_cpu(const OuterBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
