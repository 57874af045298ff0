// The running exponents of WKV-4 on a CPU. Sums are kept relative to the largest exponent so far;
// of the two exponentials that a maximum leads to, one is 1, and the other is computed.
//
// A running exponent takes a step of the decay at every token. Its rounding would be the same at
// every step and grow with the length of the sequence, so the lost part is kept next to the
// exponent; every few tokens it goes into the exponent, as far as that can hold it, and into the
// sums.
#pragma once

#include <cstdint>

#include "../common/cpu/exp.h"
#include "../common/cpu/vector.h"

namespace rwkv {

// An exponent high + low, where low is what rounding has cut off high.
template <typename T> struct Exponent {
  Vec<T> high, low;

  RWKV_INLINE Exponent<T> operator-() const { return {-high, -low}; }

  // plus `step`; exact, but for the rounding of low
  RWKV_INLINE Exponent<T> after(Vec<T> step) const {
    const Vec<T> sum = high + step, part = sum - high;
    return {sum, low + ((high - (sum - part)) + (step - part))};
  }
};

// The larger of two exponents, with exp(first - largest) and exp(second - largest)
template <typename T> struct Scaled {
  Exponent<T> largest;
  Vec<T> first, second;

  RWKV_INLINE Scaled(const Exponent<T>& a, const Exponent<T>& b) {
    const Vec<T> difference = (a.high - b.high) + (a.low - b.low);
    const auto is_first = difference > 0;
    const Vec<T> distance = is_first ? -difference : difference;
    const Vec<T> smaller = exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, distance));
    const Vec<T> one = broadcast<T>(1);
    largest.high = is_first ? a.high : b.high;
    largest.low = is_first ? a.low : b.low;
    first = is_first ? one : smaller;
    second = is_first ? smaller : one;
  }
};

// exp(a + b) for a + b <= 0, up to rounding
template <typename T> RWKV_INLINE Vec<T> exp_of_sum(const Exponent<T>& a, const Exponent<T>& b) {
  const Vec<T> sum = (a.high + b.high) + (a.low + b.low);
  return exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, sum));
}

// Moves the low part of the exponent of sums a and b, stored at pp and low, into the rest.
template <typename T> void fold_low(T* a, T* b, T* pp, T* low, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<T> high = load<T>(pp + i), lost = load<T>(low + i), sum = high + lost;
    // Not a factor 1 + rest, which would be rounded alike for every sum and add up.
    const Vec<T> rest = lost - (sum - high), in_a = load<T>(a + i), in_b = load<T>(b + i);
    store<T>(a + i, in_a + in_a * rest);
    store<T>(b + i, in_b + in_b * rest);
    store<T>(pp + i, sum);
    store<T>(low + i, Vec<T>{});
  }
}

}  // namespace rwkv
