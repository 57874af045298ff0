// The decays of WKV-7 on a CPU, a row of channels at a time.
#pragma once

#include <cstdint>

#include "../common/cpu/decays.h"
#include "../common/cpu/exp.h"
#include "../common/cpu/vector.h"
#include "wkv7.h"

namespace rwkv {

// exp(x) - 1 for x from -kWkv7LargestRate to 0, or NaN, by its power series: with all its digits,
// which a number near 1 has no room for.
template <typename T> RWKV_INLINE Vec<T> decay_less_one(Vec<T> x) {
  constexpr int kTerms = sizeof(T) == 4 ? 10 : 17;
  Vec<T> sum = broadcast<T>(inverse_factorial<T>(kTerms));
#pragma GCC unroll 16
  for (int i = kTerms - 1; i >= 1; --i) sum = sum * x + inverse_factorial<T>(i);
  return sum * x;
}

// decay of w + base, and slope, its derivative, of token t; count: a multiple of kLanes
template <typename T>
void decay_of(const T* w, const T* base, T* decay, T* slope, int64_t count, int64_t t) {
  const T share = rounding_share<T>(t);
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<T> x = load<T>(w + i) + load<T>(base + i);
    // Of sigmoid(x) and sigmoid(-x) neither is formed as one minus the other.
    const Vec<T> e = exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, x < 0 ? x : -x));
    const Vec<T> large = 1 / (1 + e), small = e * large;
    const Vec<T> sigmoid = x < 0 ? small : large, complement = x < 0 ? large : small;
    const Vec<T> log_decay = sigmoid * T(-kWkv7LargestRate);
    const Vec<T> d = 1 + (decay_less_one<T>(log_decay) + share);
    store<T>(decay + i, d);
    store<T>(slope + i, d * (log_decay * complement));
  }
}

}  // namespace rwkv
