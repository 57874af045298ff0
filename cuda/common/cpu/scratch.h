// Zeroed working memory of one thread, cut into aligned pieces.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

namespace rwkv {

template <typename T> class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { std::free(base_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Sets `piece` when `allocate` is called; its address must still be valid then.
  void want(T*& piece, int64_t elements) {
    wanted_.emplace_back(&piece, total_);
    total_ += (elements + kPerLine - 1) / kPerLine * kPerLine;
  }

  void allocate() {
    base_ = static_cast<T*>(std::aligned_alloc(kLine, total_ * sizeof(T)));
    if (base_ == nullptr) throw std::bad_alloc();
    std::memset(static_cast<void*>(base_), 0, total_ * sizeof(T));
    for (const auto& [piece, offset] : wanted_) *piece = base_ + offset;
  }

 private:
  static constexpr int64_t kLine = 64, kPerLine = kLine / sizeof(T);
  std::vector<std::pair<T**, int64_t>> wanted_;
  int64_t total_ = 0;
  T* base_ = nullptr;
};

}  // namespace rwkv
