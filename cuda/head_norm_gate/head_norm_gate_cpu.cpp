// CPU kernels of the gated head norm. Per head of N channels, with its mean and rho = 1 / sqrt(
// variance + eps):
//
//   hat = (y - mean) rho      m = hat w + b + s v      o = m act(g)
//   gm = go act(g)            gg = go m act'(g)        gv = gm s      gs = sum_N gm v
//   u = gm w                  gy = rho (u - mean_N u - hat mean_N(u hat))
//   gw = sum over tokens of gm hat                     gb = sum over tokens of gm
//
// A task is a block of tokens. Lanes are channels; heads are padded to whole vectors in working
// memory, not in the tensors.
#include "head_norm_gate.h"

#include <cmath>

#include "../common/cpu/scratch.h"
#include "../common/cpu/sigmoid.h"
#include "../common/cpu/token_block.h"
#include "../common/cpu/typed_vectors.h"

namespace rwkv {
namespace head_norm_gate {

// act(z) and its derivative.
template <typename T, bool kSilu> struct Gate {
  Vec<T> value, slope;

  RWKV_INLINE explicit Gate(Vec<T> z) {
    if constexpr (kSilu) {
      const Sigmoid<T> sigmoid(z);
      value = z * sigmoid.of_z;
      slope = sigmoid.of_z + z * sigmoid.slope();
    } else {
      value = z;
      slope = broadcast<T>(1);
    }
  }
};

// x with zeros from lane `left` on.
template <typename T> RWKV_INLINE Vec<T> first_lanes(Vec<T> x, int64_t left) {
  for (int64_t lane = left; lane < kLanes<T>; ++lane) x[lane] = 0;
  return x;
}

// What both passes need: the parameters in rows of a whole number of vectors per head, and one head
// at a time.
template <typename E> struct HeadRows {
  using T = Computing<E>;
  static constexpr int L = kLanes<T>;

  const HeadNormSizes& p;
  const void* const y;
  const int64_t stride;
  T *weight, *bias, *centred, *rho;
  Scratch<T> scratch;

  HeadRows(const HeadNormSizes& p, const void* y)
      : p(p), y(y), stride((p.size + L - 1) / L * L) {
    for (T** rows : {&weight, &bias, &centred}) scratch.want(*rows, p.heads * stride);
    scratch.want(rho, p.heads);
  }

  void start(const void* weights, const void* biases) {
    scratch.allocate();
    for (int64_t h = 0; h < p.heads; ++h) {
      std::copy_n(static_cast<const T*>(weights) + h * p.size, p.size, weight + h * stride);
      std::copy_n(static_cast<const T*>(biases) + h * p.size, p.size, bias + h * stride);
    }
  }

  // visit(its place in [B, T, H], its number) for every head of the block's tokens, with the
  // token's `centred` and `rho` there. These come for all heads at once: a head's sums wait for
  // each other, and the processor takes the next heads' meanwhile.
  template <typename Visit> RWKV_INLINE void each_head(int64_t block, Visit visit) const {
    const TokenBlock tokens(p.time, block);
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      for (int64_t h = 0; h < p.heads; ++h) centre(t * p.heads + h, h);
      for (int64_t h = 0; h < p.heads; ++h) visit(t * p.heads + h, h);
    }
  }

 private:
  // centred = y - mean
  RWKV_INLINE void centre(int64_t number, int64_t h) const {
    const E* const from = static_cast<const E*>(y) + number * p.size;
    T* const to = centred + h * stride;
    const T size = static_cast<T>(p.size);
    Vec<T> sum{}, squares{};
    for (int64_t i = 0; i < p.size; i += L) sum += load_part(from + i, p.size - i);
    const T mean = sum_lanes<T, 1>(&sum)[0] / size;
    for (int64_t i = 0; i < p.size; i += L) {
      const Vec<T> x = first_lanes<T>(load_part(from + i, p.size - i) - mean, p.size - i);
      squares += x * x;
      store<T>(to + i, x);
    }
    rho[h] = 1 / std::sqrt(sum_lanes<T, 1>(&squares)[0] / size + static_cast<T>(p.eps));
  }
};

template <typename E, bool kSilu, bool kBonus>
void forward(const HeadNormForward& p, int64_t begin, int64_t end) {
  using T = Computing<E>;
  HeadRows<E> rows(p, p.y);
  rows.start(p.weight, p.bias);
  const auto head = [&](int64_t number, int64_t h) {
    const int64_t at = number * p.size, row = h * rows.stride;
    const T *const weight = rows.weight + row, *const bias = rows.bias + row;
    const T* const centred = rows.centred + row;
    const E *const g = static_cast<const E*>(p.g) + at, *const v = static_cast<const E*>(p.v) + at;
    E* const o = static_cast<E*>(p.o) + at;
    const T rho = rows.rho[h], s = kBonus ? static_cast<const T*>(p.s)[number] : T(0);
    for (int64_t i = 0; i < p.size; i += rows.L) {
      const int64_t left = p.size - i;
      Vec<T> m = load<T>(centred + i) * rho * load<T>(weight + i) + load<T>(bias + i);
      if constexpr (kBonus) m += s * load_part(v + i, left);
      store_part(o + i, left, m * Gate<T, kSilu>(load_part(g + i, left)).value);
    }
  };
  for (int64_t block = begin; block < end; ++block) rows.each_head(block, head);
}

template <typename E, bool kSilu, bool kBonus> struct Backward {
  using T = Computing<E>;
  static constexpr int L = kLanes<T>;

  const HeadNormBackward& p;
  HeadRows<E> rows;
  T *u, *gweight, *gbias;

  explicit Backward(const HeadNormBackward& p) : p(p), rows(p, p.y) {
    rows.scratch.want(u, rows.stride);
    for (T** sums : {&gweight, &gbias}) rows.scratch.want(*sums, p.heads * rows.stride);
    rows.start(p.weight, p.bias);
  }

  void run(int64_t block) {
    for (T* sums : {gweight, gbias}) std::fill_n(sums, p.heads * rows.stride, T(0));
    rows.each_head(block, [&](int64_t number, int64_t h) { add_head(number, h); });
    T* to = static_cast<T*>(p.sums) + 2 * block * p.heads * p.size;
    for (const T* sums : {gweight, gbias}) {
      for (int64_t h = 0; h < p.heads; ++h, to += p.size) {
        std::copy_n(sums + h * rows.stride, p.size, to);
      }
    }
  }

 private:
  RWKV_INLINE void add_head(int64_t number, int64_t h) {
    const int64_t at = number * p.size, row = h * rows.stride;
    const T *const weight = rows.weight + row, *const bias = rows.bias + row;
    const E *const v = typed(p.v) + at, *const g = typed(p.g) + at, *const go = typed(p.go) + at;
    E* const gg = static_cast<E*>(p.gg) + at;
    const T* const centred = rows.centred + row;
    const T rho = rows.rho[h], s = kBonus ? static_cast<const T*>(p.s)[number] : T(0);
    Vec<T> sum_u{}, sum_u_hat{}, sum_v{};
    for (int64_t i = 0; i < p.size; i += L) {
      const int64_t left = p.size - i;
      const Vec<T> hat = load<T>(centred + i) * rho, w = load<T>(weight + i);
      const Vec<T> g_o = load_part(go + i, left);
      const Gate<T, kSilu> gate(load_part(g + i, left));
      const Vec<T> gm = g_o * gate.value;
      Vec<T> m = hat * w + load<T>(bias + i);
      if constexpr (kBonus) {
        const Vec<T> value = load_part(v + i, left);
        m += s * value;
        sum_v += gm * value;
        store_part(static_cast<E*>(p.gv) + at + i, left, gm * s);
      }
      store_part(gg + i, left, g_o * m * gate.slope);
      add_to(gweight + row + i, gm * hat);
      add_to(gbias + row + i, gm);
      const Vec<T> of_y = gm * w;
      sum_u += of_y, sum_u_hat += of_y * hat;
      store<T>(u + i, of_y);
    }
    store_gy(static_cast<E*>(p.gy) + at, centred, rho, sum_u, sum_u_hat);
    if constexpr (kBonus) static_cast<T*>(p.gs)[number] = sum_lanes<T, 1>(&sum_v)[0];
  }

  RWKV_INLINE void store_gy(E* gy, const T* centred, T rho, Vec<T> sum_u, Vec<T> sum_u_hat) const {
    const T size = static_cast<T>(p.size), mean = sum_lanes<T, 1>(&sum_u)[0] / size;
    const T slope = sum_lanes<T, 1>(&sum_u_hat)[0] / size * rho;
    for (int64_t i = 0; i < p.size; i += L) {
      const Vec<T> x = load<T>(u + i) - mean - load<T>(centred + i) * slope;
      store_part(gy + i, p.size - i, rho * x);
    }
  }

  static const E* typed(const void* tensor) { return static_cast<const E*>(tensor); }
  static RWKV_INLINE void add_to(T* sum, Vec<T> x) { store<T>(sum, load<T>(sum) + x); }
};

// run.template operator()<E, kSilu, kBonus>()
template <typename Params, typename Run> void with_kind(const Params& p, Run run) {
  with_element_type(p.dtype, [&]<typename E>() {
    const bool has_bonus = p.v != nullptr;
    if (p.silu && has_bonus) run.template operator()<E, true, true>();
    else if (p.silu) run.template operator()<E, true, false>();
    else if (has_bonus) run.template operator()<E, false, true>();
    else run.template operator()<E, false, false>();
  });
}

}  // namespace head_norm_gate

void head_norm_gate_forward_cpu(const HeadNormForward& p, int64_t begin, int64_t end) {
  head_norm_gate::with_kind(p, [&]<typename E, bool kSilu, bool kBonus>() {
    head_norm_gate::forward<E, kSilu, kBonus>(p, begin, end);
  });
}

void head_norm_gate_backward_cpu(const HeadNormBackward& p, int64_t begin, int64_t end) {
  head_norm_gate::with_kind(p, [&]<typename E, bool kSilu, bool kBonus>() {
    head_norm_gate::Backward<E, kSilu, kBonus> pass(p);
    for (int64_t block = begin; block < end; ++block) pass.run(block);
  });
}

}  // namespace rwkv
