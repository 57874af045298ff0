// Moves square states between tensors and padded working memory.
#pragma once

#include <cstdint>
#include <cstring>

#include "vector.h"

namespace rwkv {

// Padding of `to` is left alone. from, to: rows of `from_stride` and `to_stride` elements.
template <typename T>
void copy_matrix(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    std::memcpy(to + i * to_stride, from + i * from_stride, size * sizeof(T));
  }
}

}  // namespace rwkv
