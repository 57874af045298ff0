// The kernels behind rwkv::split_tanh_forward and split_tanh_backward; plain C++, no torch.
#pragma once

#include <cstdint>

#include "../common/params/dtypes.h"

namespace rwkv {

// Tensors are contiguous and of one type: "joined" ones [tokens, parts, rank], "split" ones [parts,
// tokens, rank].
struct SplitTanhSizes {
  int64_t tokens, parts, rank;
  DType dtype;
};

struct SplitTanhForward : SplitTanhSizes {
  const void* x;  // joined
  void* y;        // split
};

struct SplitTanhBackward : SplitTanhSizes {
  const void *gy, *y;  // split
  void* gx;            // joined
};

constexpr int64_t kSplitTanhTokens = 64;

// Tasks [begin, end), kSplitTanhTokens tokens each.
void split_tanh_forward_cpu(const SplitTanhForward& params, int64_t begin, int64_t end);
void split_tanh_backward_cpu(const SplitTanhBackward& params, int64_t begin, int64_t end);

}  // namespace rwkv
