// The CPU kernels behind rwkv::wkv5_forward and wkv5_backward (kDecayPerToken false) and those of
// wkv6; plain C++, no torch. Compiled in wkv5_cpu.cpp and wkv6_cpu.cpp, one of the two each.
#pragma once

#include "wkv5_6_params.h"

namespace rwkv {

// Tasks [begin, end), each a group of at most `most` heads of one batch row:
// batch row * ceil(H / most) + number of the group.
template <bool kDecayPerToken> struct Wkv5_6CpuKernels {
  static void forward(const Wkv5_6Forward& params, int64_t most, int64_t begin, int64_t end);
  static void backward(const Wkv5_6Backward& params, int64_t most, int64_t begin, int64_t end);
};

}  // namespace rwkv
