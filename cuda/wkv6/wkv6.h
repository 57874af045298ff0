// The kernels behind rwkv::wkv6_forward and wkv6_backward; plain C++, no torch.
#pragma once

#include "../wkv5_6/wkv5_6_params.h"

namespace rwkv {

// Tasks [begin, end), each a group of at most `most` heads of one batch row:
// batch row * ceil(H / most) + number of the group.
void wkv6_forward_cpu(const Wkv5_6Forward& params, int64_t most, int64_t begin, int64_t end);
void wkv6_backward_cpu(const Wkv5_6Backward& params, int64_t most, int64_t begin, int64_t end);

}  // namespace rwkv
