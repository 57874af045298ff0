// The hyperbolic tangent on vectors, by m = exp(-2 |x|) - 1: 1 - 2 / (exp(2 x) + 1) would lose the
// digits of small x, of which all low ranks are at the start of a training. Relative error at most
// about 2 ulp; NaN and both infinities come out right, zero without its sign.
#pragma once

#include "exp.h"

namespace rwkv {

// exp(x) - 1 for x from -80 to 0, or NaN
template <typename T> RWKV_INLINE Vec<T> exp_less_one(Vec<T> x) {
  using C = ExpConstants<T>;
  const Vec<T> shifted = x * T(1.4426950408889634) + C::kRounder;
  const BitVec<T> n = to_bits<T>(shifted) - to_bits<T>(broadcast<T>(C::kRounder));
  const Vec<T> whole = shifted - C::kRounder;
  const Vec<T> rest = (x - whole * C::kLn2High) - whole * C::kLn2Low;
  // (exp(rest) - 1) / rest
  Vec<T> sum = broadcast<T>(inverse_factorial<T>(C::kTerms));
#pragma GCC unroll 16
  for (int i = C::kTerms - 1; i >= 1; --i) sum = sum * rest + inverse_factorial<T>(i);
  const Vec<T> scale = power_of_two<T>(n);
  return rest * sum * scale + (scale - T(1));
}

template <typename T> RWKV_INLINE Vec<T> tanh(Vec<T> x) {
  const auto negative = x < T(0);
  // At -80 the result has long been rounded to 1, and 2^n is still a normal number.
  const Vec<T> m = exp_less_one<T>(max<T>(T(-80), T(2) * (negative ? x : -x)));
  const Vec<T> below = m / (m + T(2));
  return negative ? below : T(0) - below;
}

}  // namespace rwkv
