// CPU kernels of the bonus's weight:
//
//   s = sum_N r k weight
//   gr = gs k weight + gr_carry      gk = gs r weight + gk_carry
//   gweight = sum over tokens of gs r k
//
// A task is a block of tokens. Lanes are channels.
#include "bonus.h"

#include "../common/cpu/token_block.h"
#include "../common/cpu/typed_vectors.h"

namespace rwkv {
namespace bonus {

template <typename E> const E* typed(const void* tensor) { return static_cast<const E*>(tensor); }

template <typename E> void forward(const BonusForward& p, int64_t block) {
  using T = Computing<E>;
  const TokenBlock tokens(p.time, block);
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t number = t * p.heads + h, at = number * p.size;
      const T* const weight = static_cast<const T*>(p.weight) + h * p.size;
      Vec<T> sum{};
      for (int64_t i = 0; i < p.size; i += kLanes<T>) {
        const int64_t left = p.size - i;
        const Vec<T> r = load_part(typed<E>(p.r) + at + i, left);
        sum += r * load_part(typed<E>(p.k) + at + i, left) * load_part(weight + i, left);
      }
      static_cast<T*>(p.s)[number] = sum_lanes<T, 1>(&sum)[0];
    }
  }
}

template <typename E> RWKV_INLINE Vec<Computing<E>> load_or_zero(const void* from, int64_t at,
                                                                 int64_t left) {
  return from == nullptr ? Vec<Computing<E>>{} : load_part(typed<E>(from) + at, left);
}

template <typename E> void backward(const BonusBackward& p, int64_t block) {
  using T = Computing<E>;
  T* const gweight = static_cast<T*>(p.sums) + block * p.heads * p.size;
  std::fill_n(gweight, p.heads * p.size, T(0));
  const TokenBlock tokens(p.time, block);
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t number = t * p.heads + h, row = h * p.size;
      const T gs = static_cast<const T*>(p.gs)[number];
      for (int64_t i = 0; i < p.size; i += kLanes<T>) {
        const int64_t left = p.size - i, at = number * p.size + i;
        const Vec<T> r = load_part(typed<E>(p.r) + at, left);
        const Vec<T> k = load_part(typed<E>(p.k) + at, left);
        const Vec<T> share = gs * load_part(static_cast<const T*>(p.weight) + row + i, left);
        store_part(static_cast<E*>(p.gr) + at, left,
                   share * k + load_or_zero<E>(p.gr_carry, at, left));
        store_part(static_cast<E*>(p.gk) + at, left,
                   share * r + load_or_zero<E>(p.gk_carry, at, left));
        T* const sum = gweight + row + i;
        store_part(sum, left, load_part<T>(sum, left) + gs * r * k);
      }
    }
  }
}

}  // namespace bonus

void bonus_forward_cpu(const BonusForward& p, int64_t begin, int64_t end) {
  with_element_type(p.dtype, [&]<typename E>() {
    for (int64_t block = begin; block < end; ++block) bonus::forward<E>(p, block);
  });
}

void bonus_backward_cpu(const BonusBackward& p, int64_t begin, int64_t end) {
  with_element_type(p.dtype, [&]<typename E>() {
    for (int64_t block = begin; block < end; ++block) bonus::backward<E>(p, block);
  });
}

}  // namespace rwkv
