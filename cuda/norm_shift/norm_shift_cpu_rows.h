// Tokens as the CPU kernels of norm_shift hold them: rows of T, padded with zeros to whole vectors.
#pragma once

#include <cmath>

#include "../common/cpu/scratch.h"
#include "../common/cpu/sigmoid.h"
#include "../common/cpu/token_block.h"
#include "../common/cpu/typed_vectors.h"
#include "norm_shift.h"

namespace rwkv::norm_shift_rows {

template <typename T> struct Statistics {
  T mean, inverse;
};

// x, with zeros from lane `count` on
template <typename T> RWKV_INLINE Vec<T> first_lanes(Vec<T> x, int64_t count) {
  T lanes[kLanes<T>];
  store<T>(lanes, x);
  for (int64_t i = count; i < kLanes<T>; ++i) lanes[i] = T(0);
  return load<T>(lanes);
}

// The sum of term(x) over the first `width` elements of a padded row. Four sums side by side: one
// would wait for itself.
template <typename T, typename Term> T sum_over_row(const T* row, int64_t width, Term term) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sums[4] = {};
  int64_t c = 0;
  for (; c + 4 * L <= width; c += 4 * L) {
    for (int k = 0; k < 4; ++k) sums[k] += term(load<T>(row + c + k * L));
  }
  for (; c + L <= width; c += L) sums[0] += term(load<T>(row + c));
  if (c < width) sums[1] += first_lanes<T>(term(load<T>(row + c)), width - c);
  Vec<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return sum_lanes<T, 1>(&sum)[0];
}

// The squares of the differences are summed in a pass of their own: the mean of squares less the
// square of the mean would lose what a large mean leaves of the deviation.
template <typename T> Statistics<T> statistics_of(const T* row, int64_t width, double eps) {
  const T mean = sum_over_row<T>(row, width, [](Vec<T> x) { return x; }) / static_cast<T>(width);
  const T squares = sum_over_row<T>(row, width, [mean](Vec<T> x) {
    const Vec<T> difference = x - mean;
    return difference * difference;
  });
  return {mean, T(1) / std::sqrt(squares / static_cast<T>(width) + static_cast<T>(eps))};
}

// What every task of a call shares: the parameters and working memory.
template <typename T> struct TokenRows {
  const NormShiftInputs& p;
  const int64_t stride;
  T *weight, *bias, *mixes;  // mixes: [n][stride]
  T *out, *gate;
  Scratch<T> scratch;

  explicit TokenRows(const NormShiftInputs& p)
      : p(p), stride((p.width + kLanes<T> - 1) / kLanes<T> * kLanes<T>) {
    for (T** row : {&weight, &bias, &out, &gate}) scratch.want(*row, stride);
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
    load_row(from, kDTypeOf<T>, at, p.width, to);
  }
  void write(void* to, int64_t at, const T* from) const {
    store_row(to, kDTypeOf<T>, at, p.width, from);
  }

  // Tokens are numbered over the whole batch.
  bool starts_row(int64_t token) const { return token % p.time == 0; }
  bool ends_row(int64_t token) const { return (token + 1) % p.time == 0; }
  bool starts_document(int64_t token) const { return p.reset != nullptr && p.reset[token]; }

  // row += out, or s(gate) out
  void add_branch(int64_t token, T* row) const {
    load_row(p.out, p.out_dtype, token * p.width, p.width, out);
    if (p.gate != nullptr) load_row(p.gate, p.out_dtype, token * p.width, p.width, gate);
    for (int64_t c = 0; c < stride; c += kLanes<T>) {
      Vec<T> x = load<T>(out + c);
      if (p.gate != nullptr) x *= Sigmoid<T>(load<T>(gate + c)).of_z;
      store<T>(row + c, load<T>(row + c) + x);
    }
  }

  // row = (row - mean) inverse, and with `scaled` that times weight plus bias
  void normalise(Statistics<T> s, bool scaled, T* row) const {
    for (int64_t c = 0; c < stride; c += kLanes<T>) {
      const Vec<T> x = (load<T>(row + c) - s.mean) * s.inverse;
      store<T>(row + c, scaled ? x * load<T>(weight + c) + load<T>(bias + c) : x);
    }
  }

  // to = the token before a batch row's first one
  void read_last(int64_t token, T* to) const {
    if (p.last == nullptr) std::fill_n(to, p.width, T(0));
    else read(p.last, token / p.time * p.width, to);
  }
};

}  // namespace rwkv::norm_shift_rows
