// The running exponents and sums of WKV-4 on a CPU. Sums are kept relative to the largest exponent
// so far; of the two exponentials that a maximum leads to, one is 1, and the other is computed.
//
// A running exponent takes a step of the decay at every token, and where the decay is slow a sum of
// thousands of tokens takes one more. What rounding cuts off would grow with the length of the
// sequence, so it is kept next to them, and every few tokens it goes into what it was cut off, as
// far as that can hold it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cpu/exp.h"
#include "../common/cpu/scratch.h"
#include "../common/cpu/vector.h"

namespace rwkv {

// A number high + low, where low is what rounding has cut off high.
template <typename T> struct Compensated {
  Vec<T> high, low;

  RWKV_INLINE Compensated<T> operator-() const { return {-high, -low}; }

  // Exact, but for the rounding of low
  RWKV_INLINE Compensated<T> plus(Vec<T> term) const {
    const Vec<T> sum = high + term, part = sum - high;
    return {sum, low + ((high - (sum - part)) + (term - part))};
  }
  RWKV_INLINE Compensated<T> times(Vec<T> factor) const { return {factor * high, factor * low}; }
};

// Rows of such numbers, a lane a channel
template <typename T> struct CompensatedRow {
  T *high, *low;

  void want(Scratch<T>& scratch, int64_t count) {
    scratch.want(high, count);
    scratch.want(low, count);
  }
  void fill(T value, int64_t count) const {
    std::fill_n(high, count, value);
    std::fill_n(low, count, T(0));
  }
  RWKV_INLINE Compensated<T> load(int64_t i) const {
    return {rwkv::load<T>(high + i), rwkv::load<T>(low + i)};
  }
  RWKV_INLINE void store(int64_t i, const Compensated<T>& value) const {
    rwkv::store<T>(high + i, value.high);
    rwkv::store<T>(low + i, value.low);
  }
};

// The larger of two exponents, with exp(first - largest) and exp(second - largest)
template <typename T> struct Scaled {
  Compensated<T> largest;
  Vec<T> first, second, to_first;

  RWKV_INLINE Scaled(const Compensated<T>& a, const Compensated<T>& b) {
    const Vec<T> difference = (a.high - b.high) + (a.low - b.low);
    const auto is_first = difference > 0;
    const Vec<T> distance = is_first ? -difference : difference;
    to_first = is_first ? Vec<T>{} : difference;
    const Vec<T> smaller = exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, distance));
    const Vec<T> one = broadcast<T>(1);
    largest.high = is_first ? a.high : b.high;
    largest.low = is_first ? a.low : b.low;
    first = is_first ? one : smaller;
    second = is_first ? smaller : one;
  }

  // first * sum + term, for exponents that may be equal but for their rounding, token after token
  RWKV_INLINE Compensated<T> move(const Compensated<T>& sum, Vec<T> term) const {
    // Near 1 a factor cannot hold what it lacks to 1: its power series less 1 goes to the low part.
    const auto is_near = to_first > T(-0.0001220703125);
    const Vec<T> less = to_first + to_first * to_first * (T(0.5) + to_first * (T(1) / T(6)));
    Compensated<T> moved = sum.times(is_near ? broadcast<T>(1) : first).plus(term);
    moved.low = moved.low + (is_near ? less : Vec<T>{}) * sum.high;
    return moved;
  }
};

// exp(a + b) for a + b <= 0, up to rounding
template <typename T> RWKV_INLINE Vec<T> exp_of_sum(const Compensated<T>& a,
                                                    const Compensated<T>& b) {
  const Vec<T> sum = (a.high + b.high) + (a.low + b.low);
  return exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, sum));
}

// Moves from the low to the high parts what those can hold.
template <typename T> void fold_low(const CompensatedRow<T>& row, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Compensated<T> number = row.load(i);
    row.store(i, Compensated<T>{number.low, {}}.plus(number.high));
  }
}

// Writes the sums that belong to the exponent without its low part.
template <typename T> void round_sums(const CompensatedRow<T>& sums,
                                      const CompensatedRow<T>& exponents, int64_t count, T* to) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Compensated<T> sum = sums.load(i);
    store<T>(to + i, sum.high + (sum.low + sum.high * exponents.load(i).low));
  }
}

}  // namespace rwkv
