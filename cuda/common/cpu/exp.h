// Exponentials on vectors, without tables or branches. Relative error at most about 1.5 ulp;
// NaN, both infinities and results below the smallest normal number come out right.
#pragma once

#include "vector.h"

namespace rwkv {

template <typename T> struct ExpConstants;
template <> struct ExpConstants<float> {
  // beyond these exp is infinite, or rounds to zero
  static constexpr float kLargest = 89.0f, kSmallest = -104.0f;
  // adding it leaves the nearest integer in the low bits of the sum
  static constexpr float kRounder = 12582912.0f;
  // ln 2 in two parts; the first has zeros at the end, so that n * kLn2High is exact
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  static constexpr int kTerms = 8, kMantissaBits = 23, kBias = 127;
};
template <> struct ExpConstants<double> {
  static constexpr double kLargest = 710.0, kSmallest = -746.0;
  static constexpr double kRounder = 6755399441055744.0;
  static constexpr double kLn2High = 0.693145751953125, kLn2Low = 1.42860682030941723212e-6;
  static constexpr int kTerms = 14, kMantissaBits = 52, kBias = 1023;
};

template <typename T> constexpr T inverse_factorial(int n) {
  double product = 1;
  for (int i = 2; i <= n; ++i) product *= i;
  return static_cast<T>(1 / product);
}

// 2^n for normal results
template <typename T> RWKV_INLINE Vec<T> power_of_two(BitVec<T> n) {
  using C = ExpConstants<T>;
  return from_bits<T>((n + C::kBias) << C::kMantissaBits);
}

// exp(x) = 2^n exp(x - n ln 2), the second factor by its power series on [-0.35, 0.35]; for x
// within [2 kSmallest, kLargest] or NaN
template <typename T> RWKV_INLINE Vec<T> exp_in_range(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> shifted = x * T(1.4426950408889634) + C::kRounder;
  const BitVec<T> n = to_bits<T>(shifted) - to_bits<T>(broadcast<T>(C::kRounder));
  const Vec<T> whole = shifted - C::kRounder;
  const Vec<T> rest = (x - whole * C::kLn2High) - whole * C::kLn2Low;
  Vec<T> sum = broadcast<T>(inverse_factorial<T>(C::kTerms - 1));
#pragma GCC unroll 16
  for (int i = C::kTerms - 2; i >= 0; --i) sum = sum * rest + inverse_factorial<T>(i);
  // in two steps, because 2^n alone may be out of range where the product is not
  const BitVec<T> half = n >> 1;
  return sum * power_of_two<T>(half) * power_of_two<T>(n - half);
}

template <typename T> RWKV_INLINE Vec<T> exp(Vec<T> x) {
  using C = ExpConstants<T>;
  return exp_in_range<T>(min<T>(C::kLargest, max<T>(C::kSmallest, x)));
}

}  // namespace rwkv
