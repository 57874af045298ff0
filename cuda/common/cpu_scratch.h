// Zeroed working memory of one thread, cut into aligned pieces.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace rwkv {

template <typename T> class Scratch {
 public:
  // elements: at least the sum of all pieces, each rounded up to whole cache lines
  explicit Scratch(int64_t elements)
      : bytes_(round_up(elements) * sizeof(T)),
        base_(static_cast<T*>(std::aligned_alloc(kLine, bytes_))) {
    if (base_ == nullptr) throw std::bad_alloc();
    std::memset(static_cast<void*>(base_), 0, bytes_);
    next_ = base_;
  }
  ~Scratch() { std::free(base_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* take(int64_t elements) {
    T* piece = next_;
    next_ += round_up(elements);
    return piece;
  }

  static int64_t round_up(int64_t elements) {
    constexpr int64_t per_line = kLine / sizeof(T);
    return (elements + per_line - 1) / per_line * per_line;
  }

 private:
  static constexpr int64_t kLine = 64;
  size_t bytes_;
  T* base_;
  T* next_;
};

}  // namespace rwkv
