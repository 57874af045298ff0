// Asks for the rows that will be read next, a few at a time between tiles of arithmetic.
//
// A row of one head is a few cache lines, and the next token's row lies H * N elements further,
// where the processor does not fetch ahead by itself. Asked for all at once, rows come no faster
// than the few lines that may be under way at a time; asked for during the arithmetic, they cost
// nothing.
#pragma once

#include <algorithm>
#include <cstdint>

#include "head_rows.h"

namespace rwkv {

class Prefetch {
 public:
  // The rows of these tokens, of the tensors that follow.
  void start(const HeadTokens& range) {
    left_ = range.tokens;
    first_ = range.place.token(range.begin);
    step_ = range.place.heads * range.place.size;
    size_ = range.place.size;
    tensors_ = 0;
  }

  void add(const void* tensor, DType dtype) {
    const int64_t bytes = bytes_of(dtype);
    next_[tensors_] = static_cast<const char*>(tensor) + first_ * bytes;
    bytes_[tensors_++] = bytes;
  }

  // Shares the rows out among `calls` calls of fetch.
  void share(int64_t calls) { per_call_ = (left_ + calls - 1) / calls; }

  void fetch() {
    for (int64_t n = std::min(per_call_, left_); n > 0; --n, --left_) {
      for (int i = 0; i < tensors_; ++i) {
        const char* const row = next_[i];
        for (int64_t at = 0; at < size_ * bytes_[i]; at += 64) __builtin_prefetch(row + at, 0, 2);
        next_[i] += step_ * bytes_[i];
      }
    }
  }

 private:
  static constexpr int kMost = 8;
  int64_t left_ = 0, first_ = 0, step_ = 0, size_ = 0, per_call_ = 0;
  int tensors_ = 0;
  const char* next_[kMost];
  int64_t bytes_[kMost];
};

}  // namespace rwkv
