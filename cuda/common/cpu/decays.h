// Decays per token on a CPU whose rounding does not add up.
//
// A decay just below 1 is rounded to a multiple of half an epsilon. When it is the same at every
// token, so is what is cut off, and over thousands of tokens the state decays visibly too fast or
// too slowly. So it is rounded down at some tokens and up at the others, as often as its exact
// value asks for: before rounding, token t adds a share of the last place that is spread evenly
// over any stretch of tokens. The share follows from t alone, so that the backward pass, which
// computes states again, has the same decays.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "exp.h"
#include "vector.h"

namespace rwkv {

// The share of token t: from -1/2 to 1/2 of the last place of numbers just below 1; 0 for t = 0.
template <typename T> T rounding_share(int64_t t) {
  // Multiples of the golden ratio, of which the bits are the fraction: evenly spread however many.
  const uint64_t fraction = static_cast<uint64_t>(t) * UINT64_C(0x9E3779B97F4A7C15);
  const T last_place = std::numeric_limits<T>::epsilon() / 2;
  return std::ldexp(static_cast<T>(static_cast<int64_t>(fraction)), -64) * last_place;
}

// A decay whole + less, where whole is 1 if the decay is slow; otherwise less is 0.
template <typename T> struct Decay {
  Vec<T> whole, less;

  RWKV_INLINE Vec<T> rounded(T share) const {
    return whole + (whole == 1 ? less + share : less);
  }
};

// exp(log_decay) for log_decay from 2 kSmallest to 0, or NaN
template <typename T> RWKV_INLINE Decay<T> decay_from_log(Vec<T> log_decay) {
  using C = ExpConstants<T>;
  // exp(x) - 1 by its power series, with all its digits, which a number near 1 has no room for
  Vec<T> sum = broadcast<T>(inverse_factorial<T>(C::kTerms - 1));
#pragma GCC unroll 16
  for (int i = C::kTerms - 2; i >= 1; --i) sum = sum * log_decay + inverse_factorial<T>(i);
  // The range of the series; a faster decay forgets before roundings could add up.
  const auto is_slow = log_decay > T(-0.34);
  const Vec<T> fast = exp_in_range<T>(log_decay), one = broadcast<T>(1);
  return {is_slow ? one : fast, is_slow ? sum * log_decay : Vec<T>{}};
}

}  // namespace rwkv
