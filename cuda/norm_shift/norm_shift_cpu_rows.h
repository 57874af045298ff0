// Tokens as the CPU kernels of norm_shift hold them: rows of T, padded with zeros to whole vectors.
#pragma once

#include <cmath>

#include "../common/cpu/scratch.h"
#include "../common/cpu/sigmoid.h"
#include "../common/cpu/token_block.h"
#include "../common/cpu/typed_vectors.h"
#include "norm_shift.h"

namespace rwkv::norm_shift_rows {

// visit(c, left) for every vector of a row of `width` elements. left: the elements from c on, or a
// constant where they are more than the vector has, so that nothing is compared there.
template <typename T, typename Visit> RWKV_INLINE void each_vector(int64_t width, Visit visit) {
  constexpr int64_t L = kLanes<T>;
  int64_t c = 0;
  for (; c + L <= width; c += L) visit(c, std::integral_constant<int64_t, L>());
  if (c < width) visit(c, width - c);
}

// x, with zeros from lane `count` on
template <typename T> RWKV_INLINE Vec<T> first_lanes(Vec<T> x, int64_t count) {
  if (count >= kLanes<T>) return x;
  T lanes[kLanes<T>];
  store<T>(lanes, x);
  for (int64_t i = count; i < kLanes<T>; ++i) lanes[i] = T(0);
  return load<T>(lanes);
}

template <typename T> T sum_of_lanes(Vec<T> x) { return sum_lanes<T, 1>(&x)[0]; }

// The sum of (x - mean)^2 over a row. Four sums side by side: one would wait for itself.
template <typename T> T sum_of_squares(const T* row, int64_t width, T mean) {
  constexpr int64_t L = kLanes<T>;
  const auto square = [&](int64_t c) {
    const Vec<T> x = load<T>(row + c) - mean;
    return x * x;
  };
  Vec<T> sums[4] = {};
  int64_t c = 0;
  for (; c + 4 * L <= width; c += 4 * L) {
    for (int k = 0; k < 4; ++k) sums[k] += square(c + k * L);
  }
  for (; c < width; c += L) sums[0] += first_lanes<T>(square(c), width - c);
  return sum_of_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <typename T> struct Statistics {
  T mean, inverse;
};

// What every task of a call shares: where tokens lie, the parameters, working memory.
template <typename T> struct TokenRows {
  const NormShiftInputs& p;
  const int64_t stride;
  T *weight, *bias, *mixes;  // mixes: [n][stride]
  Scratch<T> scratch;

  explicit TokenRows(const NormShiftInputs& p)
      : p(p), stride((p.width + kLanes<T> - 1) / kLanes<T> * kLanes<T>) {
    scratch.want(weight, stride), scratch.want(bias, stride);
    scratch.want(mixes, p.count * stride);
  }

  void allocate() {
    scratch.allocate();
    read(p.weight, 0, weight), read(p.bias, 0, bias);
    if (p.mixes == nullptr) return;
    for (int64_t i = 0; i < p.count; ++i) read(p.mixes, i * p.width, mixes + i * stride);
  }

  // Elements of a tensor of T.
  void read(const void* from, int64_t at, T* to) const {
    std::copy_n(static_cast<const T*>(from) + at, p.width, to);
  }
  void write(void* to, int64_t at, const T* from) const {
    std::copy_n(from, p.width, static_cast<T*>(to) + at);
  }

  // Tokens are numbered over the whole batch.
  bool starts_row(int64_t token) const { return token % p.time == 0; }
  bool ends_row(int64_t token) const { return (token + 1) % p.time == 0; }
  bool starts_document(int64_t token) const { return p.reset != nullptr && p.reset[token]; }

  // to = what a token is mixed with that starts a document or a batch row
  void read_first(int64_t token, T* to) const {
    if (p.last == nullptr || starts_document(token)) std::fill_n(to, p.width, T(0));
    else read(p.last, token / p.time * p.width, to);
  }
};

// run.template operator()<X, Y>() for the element types of x and of the results.
template <typename Run> void with_types(const NormShiftSizes& p, Run run) {
  with_element_type(p.y_dtype, [&]<typename Y>() {
    if (p.dtype == p.y_dtype) run.template operator()<Y, Y>();
    else if constexpr (!std::is_same_v<Y, Computing<Y>>) run.template operator()<float, Y>();
  });
}

}  // namespace rwkv::norm_shift_rows
