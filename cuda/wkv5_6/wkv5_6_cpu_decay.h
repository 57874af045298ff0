// The logarithm of the decays of RWKV-5 and 6 on a CPU, a vector of channels at a time.
#pragma once

#include "../common/cpu/exp.h"
#include "../common/cpu/vector.h"
#include "wkv5_6_params.h"

namespace rwkv {

// the logarithm of the decay exp(-exp(w)), which is also its own derivative by w
template <typename T> RWKV_INLINE Vec<T> log_decay_of(const T* w) {
  const Vec<T> limited = min<T>(kLargestLogRate<T>, load<T>(w));
  return -exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, limited));
}

}  // namespace rwkv
