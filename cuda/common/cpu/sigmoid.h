// The logistic function with what its gradient needs, by e = exp(-|z|): s (1 - s) would lose all
// digits of the slope where s is close to 1.
#pragma once

#include "exp.h"

namespace rwkv {

template <typename T> struct Sigmoid {
  Vec<T> of_z, of_minus_z;  // s(z) and s(-z) = 1 - s(z)

  RWKV_INLINE explicit Sigmoid(Vec<T> z) {
    const auto negative = z < T(0);
    const Vec<T> e = exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, negative ? z : -z));
    const Vec<T> inverse = T(1) / (T(1) + e), rest = e * inverse;
    of_z = negative ? rest : inverse;
    of_minus_z = negative ? inverse : rest;
  }

  RWKV_INLINE Vec<T> slope() const { return of_z * of_minus_z; }
};

}  // namespace rwkv
