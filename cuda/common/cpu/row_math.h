// Arithmetic on padded rows: O(N) work per token, next to the N x N work of the tiles. Every count
// and stride is a multiple of kLanes.
#pragma once

#include <cstdint>
#include <cstring>

#include "vector.h"

namespace rwkv {

template <typename T> void clear_rows(T* x, int64_t count) {
  std::memset(static_cast<void*>(x), 0, count * sizeof(T));
}

// sum of a * b
template <typename T> T dot(const T* a, const T* b, int64_t stride) {
  Vec<T> sum{};
  for (int64_t i = 0; i < stride; i += kLanes<T>) sum += load<T>(a + i) * load<T>(b + i);
  return sum_lanes<T, 1>(&sum)[0];
}

// sum of a * b * c
template <typename T> T dot(const T* a, const T* b, const T* c, int64_t stride) {
  Vec<T> sum{};
  for (int64_t i = 0; i < stride; i += kLanes<T>) {
    sum += load<T>(a + i) * load<T>(b + i) * load<T>(c + i);
  }
  return sum_lanes<T, 1>(&sum)[0];
}

// to = scale * a
template <typename T> void set_scaled(T* to, T scale, const T* a, int64_t stride) {
  for (int64_t i = 0; i < stride; i += kLanes<T>) store<T>(to + i, scale * load<T>(a + i));
}

// to = scale * a * b
template <typename T> void set_scaled(T* to, T scale, const T* a, const T* b, int64_t stride) {
  for (int64_t i = 0; i < stride; i += kLanes<T>) {
    store<T>(to + i, scale * (load<T>(a + i) * load<T>(b + i)));
  }
}

// to += scale * a * b
template <typename T> void add_scaled(T* to, T scale, const T* a, const T* b, int64_t stride) {
  for (int64_t i = 0; i < stride; i += kLanes<T>) {
    store<T>(to + i, load<T>(to + i) + scale * (load<T>(a + i) * load<T>(b + i)));
  }
}

// to += a
template <typename T> void add(T* to, const T* a, int64_t stride) {
  for (int64_t i = 0; i < stride; i += kLanes<T>) {
    store<T>(to + i, load<T>(to + i) + load<T>(a + i));
  }
}

// to *= a
template <typename T> void multiply(T* to, const T* a, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    store<T>(to + i, load<T>(to + i) * load<T>(a + i));
  }
}

}  // namespace rwkv
