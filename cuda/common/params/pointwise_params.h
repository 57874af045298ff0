// What a kernel receives that computes every element from the elements in the same place; no torch.
#pragma once

#include <cstdint>

#include "dtypes.h"

namespace rwkv {

// All tensors are contiguous and have `count` elements of one type.
template <int kInputs, int kOutputs> struct Pointwise {
  int64_t count;
  DType dtype;
  const void* inputs[kInputs];
  void* outputs[kOutputs];
};

}  // namespace rwkv
