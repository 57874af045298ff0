// Walks over the elements of tensors of one shape, a vector of each at a time.
#pragma once

#include <algorithm>

#include "../params/pointwise_params.h"
#include "typed_vectors.h"

namespace rwkv {

template <typename T, int kCount> struct VecPerTensor {
  Vec<T> at[kCount];
};

// Elements [begin, end). map.template operator()<T>(x) -> VecPerTensor<T, kOutputs> with the
// inputs x as VecPerTensor<T, kInputs>.
template <int kInputs, int kOutputs, typename Map>
void walk_pointwise(const Pointwise<kInputs, kOutputs>& p, int64_t begin, int64_t end, Map map) {
  with_element_type(p.dtype, [&]<typename E>() {
    using T = Computing<E>;
    const auto step = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      VecPerTensor<T, kInputs> x;
      for (int k = 0; k < kInputs; ++k) {
        x.at[k] = load_part(static_cast<const E*>(p.inputs[k]) + i, count);
      }
      const VecPerTensor<T, kOutputs> y = map.template operator()<T>(x);
      for (int k = 0; k < kOutputs; ++k) {
        store_part(static_cast<E*>(p.outputs[k]) + i, count, y.at[k]);
      }
    };
    constexpr int64_t L = kLanes<T>;
    int64_t i = begin;
    for (; i + L <= end; i += L) step(i, L);
    if (i < end) step(i, end - i);
  });
}

}  // namespace rwkv
