// One head's rows in tensors [B, T, H, N]: where they are, reading and writing.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../params/head_params.h"
#include "typed_rows.h"

namespace rwkv {

// task: batch row * heads + head
struct HeadPlace {
  int64_t task, row, head, time, heads, size;

  HeadPlace(const HeadSizes& p, int64_t task)
      : task(task), row(task / p.heads), head(task % p.heads), time(p.time), heads(p.heads),
        size(p.size) {}
  // Index in tensors [B, T, H], and of the first element in [B, T, H, N].
  int64_t number(int64_t t) const { return (row * time + t) * heads + head; }
  int64_t token(int64_t t) const { return number(t) * size; }
};

// Tokens [begin, begin + tokens) of a head; none of them before begin 0.
struct HeadTokens {
  HeadPlace place;
  int64_t begin, tokens;
};

template <typename T>
void read_rows(const void* from, DType dtype, const HeadPlace& place, int64_t begin,
               int64_t tokens, T* to, int64_t stride) {
  for (int64_t t = 0; t < tokens; ++t) {
    load_row<T>(from, dtype, place.token(begin + t), place.size, to + t * stride);
  }
}

template <typename T>
void write_rows(void* to, DType dtype, const HeadPlace& place, int64_t begin, int64_t tokens,
                const T* from, int64_t stride) {
  for (int64_t t = 0; t < tokens; ++t) {
    store_row<T>(to, dtype, place.token(begin + t), place.size, from + t * stride);
  }
}

}  // namespace rwkv
