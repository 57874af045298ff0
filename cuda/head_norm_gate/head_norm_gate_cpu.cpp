// CPU kernels of the gated head norm. Per head of N channels, with its mean and rho = 1 / sqrt(
// variance + eps):
//
//   hat = (y - mean) rho      m = hat w + b + s v      o = m act(g)
//   gm = go act(g)            gg = go m act'(g)        gv = gm s      gs = sum_N gm v
//   u = gm w                  gy = rho (u - mean_N u - hat mean_N(u hat))
//   gw = sum over tokens of gm hat                     gb = sum over tokens of gm
//
// A task is a block of tokens; it takes heads by groups whose rows stay in the cache.
#include "head_norm_gate.h"

#include <algorithm>
#include <cmath>

#include "../common/cpu/exp.h"
#include "../common/cpu/scratch.h"
#include "../common/cpu/typed_rows.h"

namespace rwkv {
namespace head_norm_gate {

// Channels of a group of heads, if a head is not wider: a whole token of a small model, so that its
// tensors are read and written from one end to the other.
constexpr int64_t kGroupChannels = 1024;

template <typename T> RWKV_INLINE Vec<T> absolute(Vec<T> x) { return x < 0 ? -x : x; }

// act(z) and its derivative, both from exp(-|z|): 1 - sigmoid(z) would lose its digits.
template <typename T, bool kSilu> struct Gate {
  Vec<T> value, slope;

  RWKV_INLINE explicit Gate(Vec<T> z) {
    if constexpr (kSilu) {
      const Vec<T> one = broadcast<T>(1), e = exp<T>(-absolute<T>(z)), inverse = one / (one + e);
      const Vec<T> sigmoid = (z < 0 ? e : one) * inverse;
      value = z * sigmoid;
      slope = sigmoid + z * (e * inverse * inverse);
    } else {
      value = z;
      slope = broadcast<T>(1);
    }
  }
};

// What the two passes share: rows of the heads of one token, each head padded with zeros to whole
// vectors, and how they are read and written.
template <typename T> struct Group {
  const HeadNormSizes& p;
  const int64_t stride, most;
  int64_t first = 0, heads = 0;
  BitVec<T> *inside;  // [stride]: all bits set in channels of the head
  T *y, *g, *hat, *weight, *bias, *v, *rho;  // rho: one number a head
  Scratch<T> scratch;

  explicit Group(const HeadNormSizes& p)
      : p(p), stride((p.size + kLanes<T> - 1) / kLanes<T> * kLanes<T>), most(heads_of(p, stride)) {
    for (T** row : {&y, &g, &hat, &weight, &bias, &v}) want(*row);
    scratch.want(rho, most);
    scratch.want(mask_, stride);
  }
  void want(T*& row) { scratch.want(row, most * stride); }
  void allocate() {
    scratch.allocate();
    inside = reinterpret_cast<BitVec<T>*>(mask_);
    for (int64_t i = 0; i < stride; ++i) inside[i / kLanes<T>][i % kLanes<T>] = -(i < p.size);
  }

  // Heads [first, ...) with their parameters.
  void start(const void* weights, const void* biases, int64_t first_head) {
    first = first_head, heads = std::min(most, p.heads - first);
    read(weights, kDTypeOf<T>, 0, weight);
    read(biases, kDTypeOf<T>, 0, bias);
  }

  // token: its number in [B T, H, N], counted in rows of H N channels
  void read(const void* from, DType dtype, int64_t token, T* to) const {
    each_row(token, [&](int64_t at, int64_t count, int64_t row) {
      load_row(from, dtype, at, count, to + row);
    });
  }
  void write(void* to, DType dtype, int64_t token, const T* from) const {
    each_row(token, [&](int64_t at, int64_t count, int64_t row) {
      store_row(to, dtype, at, count, from + row);
    });
  }

  // hat = y - mean, and rho. For all heads at once: a head's sums wait for each other, and the
  // processor takes the next heads' meanwhile.
  void center() const {
    const T size = static_cast<T>(p.size), eps = static_cast<T>(p.eps);
    const T* from = y;
    T* to = hat;
    for (int64_t h = 0; h < heads; ++h, from += stride, to += stride) {
      Vec<T> sum{}, squares{};
      for (int64_t i = 0; i < stride; i += kLanes<T>) sum += load<T>(from + i);
      const T mean = sum_lanes<T, 1>(&sum)[0] / size;
      for (int64_t i = 0; i < stride; i += kLanes<T>) {
        const Vec<T> all = load<T>(from + i) - mean;
        const Vec<T> x = from_bits<T>(to_bits<T>(all) & inside[i / kLanes<T>]);
        squares += x * x;
        store<T>(to + i, x);
      }
      rho[h] = 1 / std::sqrt(sum_lanes<T, 1>(&squares)[0] / size + eps);
    }
  }

 private:
  // Groups of about equal size.
  static int64_t heads_of(const HeadNormSizes& p, int64_t stride) {
    const int64_t fitting = std::max<int64_t>(1, kGroupChannels / stride);
    const int64_t groups = (p.heads + fitting - 1) / fitting;
    return (p.heads + groups - 1) / groups;
  }
  template <typename Visit> void each_row(int64_t token, Visit visit) const {
    const int64_t at = token * p.width() + first * p.size;
    if (stride == p.size) return visit(at, heads * p.size, 0);
    for (int64_t h = 0; h < heads; ++h) visit(at + h * p.size, p.size, h * stride);
  }

  T* mask_;
};

// visit(token, block) of every token of the blocks [begin, end), with the group at each head in
// turn; before and after(block) around every block.
template <typename T, typename Params, typename Before, typename Visit, typename After>
void walk(const Params& p, Group<T>& group, int64_t begin, int64_t end, Before before, Visit visit,
          After after) {
  const int64_t per_row = blocks_per_row(p.time);
  for (int64_t first = 0; first < p.heads; first += group.most) {
    group.start(p.weight, p.bias, first);
    for (int64_t block = begin; block < end; ++block) {
      before();
      const int64_t row = block / per_row, start = block % per_row * kBlockTokens;
      const int64_t stop = std::min(start + kBlockTokens, p.time);
      for (int64_t t = start; t < stop; ++t) visit(row * p.time + t);
      after(block);
    }
  }
}

template <typename T, bool kSilu, bool kBonus>
void forward(const HeadNormForward& p, int64_t begin, int64_t end) {
  Group<T> group(p);
  T* o;
  group.want(o);
  group.allocate();
  const auto token = [&](int64_t t) {
    group.read(p.y, p.dtype, t, group.y);
    group.read(p.g, p.dtype, t, group.g);
    if (kBonus) group.read(p.v, p.dtype, t, group.v);
    group.center();
    const T *hat = group.hat, *weight = group.weight, *bias = group.bias, *v = group.v;
    const T* const g = group.g;
    T* const to = o;
    for (int64_t h = 0, i = 0; h < group.heads; ++h) {
      const T rho = group.rho[h];
      const T s = kBonus ? static_cast<const T*>(p.s)[t * p.heads + group.first + h] : T(0);
      for (const int64_t stop = i + group.stride; i < stop; i += kLanes<T>) {
        Vec<T> m = load<T>(hat + i) * rho * load<T>(weight + i) + load<T>(bias + i);
        if (kBonus) m += s * load<T>(v + i);
        store<T>(to + i, m * Gate<T, kSilu>(load<T>(g + i)).value);
      }
    }
    group.write(p.o, p.dtype, t, o);
  };
  walk<T>(p, group, begin, end, [] {}, token, [](int64_t) {});
}

// The gradients of one token, and what it adds to those of the parameters.
template <typename T, bool kSilu, bool kBonus> struct Backward {
  const HeadNormBackward& p;
  Group<T> group;
  T *go, *gy, *gg, *gv, *gweight, *gbias;

  explicit Backward(const HeadNormBackward& p) : p(p), group(p) {
    for (T** row : {&go, &gy, &gg, &gv, &gweight, &gbias}) group.want(*row);
    group.allocate();
  }

  void clear() {
    std::fill_n(gweight, group.heads * group.stride, T(0));
    std::fill_n(gbias, group.heads * group.stride, T(0));
  }

  void token(int64_t t) {
    group.read(p.go, p.dtype, t, go);
    group.read(p.y, p.dtype, t, group.y);
    group.read(p.g, p.dtype, t, group.g);
    if (kBonus) group.read(p.v, p.dtype, t, group.v);
    group.center();
    for (int64_t h = 0; h < group.heads; ++h) head(h, t * p.heads + group.first + h);
    group.write(p.gy, p.dtype, t, gy);
    group.write(p.gg, p.dtype, t, gg);
    if (kBonus) group.write(p.gv, p.dtype, t, gv);
  }

  void finish(int64_t block) const {
    group.write(p.parts, kDTypeOf<T>, 2 * block, gweight);
    group.write(p.parts, kDTypeOf<T>, 2 * block + 1, gbias);
  }

 private:
  // at: of the head and its token in [B, T, H]
  void head(int64_t h, int64_t at) const {
    const int64_t begin = h * group.stride, stride = group.stride;
    const T *const y_hat = group.hat + begin, *const g = group.g + begin, *const v = group.v + begin;
    const T *const weight = group.weight + begin, *const bias = group.bias + begin;
    const T* const to_go = go + begin;
    T *const to_g = gg + begin, *const to_v = gv + begin, *const to_y = gy + begin;
    T *const to_weight = gweight + begin, *const to_bias = gbias + begin;
    const T rho = group.rho[h], s = kBonus ? static_cast<const T*>(p.s)[at] : T(0);
    Vec<T> sum_u{}, sum_u_hat{}, sum_v{};
    for (int64_t i = 0; i < stride; i += kLanes<T>) {
      const Vec<T> hat = load<T>(y_hat + i) * rho, w = load<T>(weight + i);
      const Vec<T> o = load<T>(to_go + i);
      const Gate<T, kSilu> gate(load<T>(g + i));
      const Vec<T> gm = o * gate.value;
      Vec<T> m = hat * w + load<T>(bias + i);
      if (kBonus) {
        const Vec<T> value = load<T>(v + i);
        m += s * value;
        sum_v += gm * value;
        store<T>(to_v + i, gm * s);
      }
      store<T>(to_g + i, o * m * gate.slope);
      store<T>(to_weight + i, load<T>(to_weight + i) + gm * hat);
      store<T>(to_bias + i, load<T>(to_bias + i) + gm);
      const Vec<T> u = gm * w;
      sum_u += u;
      sum_u_hat += u * hat;
      store<T>(to_y + i, u);
    }
    const T size = static_cast<T>(p.size);
    const T mean = sum_lanes<T, 1>(&sum_u)[0] / size;
    const T slope = sum_lanes<T, 1>(&sum_u_hat)[0] / size * rho;
    for (int64_t i = 0; i < stride; i += kLanes<T>) {
      const Vec<T> u = load<T>(to_y + i);
      store<T>(to_y + i, rho * (u - mean - load<T>(y_hat + i) * slope));
    }
    if (kBonus) static_cast<T*>(p.gs)[at] = sum_lanes<T, 1>(&sum_v)[0];
  }
};

template <typename T, bool kSilu, bool kBonus>
void backward(const HeadNormBackward& p, int64_t begin, int64_t end) {
  Backward<T, kSilu, kBonus> pass(p);
  walk<T>(p, pass.group, begin, end, [&] { pass.clear(); }, [&](int64_t t) { pass.token(t); },
          [&](int64_t block) { pass.finish(block); });
}

// run.template operator()<T, kSilu, kBonus>()
template <typename Params, typename Run> void with_kind(const Params& p, Run run) {
  const auto with_type = [&]<bool kSilu, bool kBonus>() {
    if (p.dtype == DType::kDouble) run.template operator()<double, kSilu, kBonus>();
    else run.template operator()<float, kSilu, kBonus>();
  };
  if (p.silu && p.v != nullptr) with_type.template operator()<true, true>();
  else if (p.silu) with_type.template operator()<true, false>();
  else if (p.v != nullptr) with_type.template operator()<false, true>();
  else with_type.template operator()<false, false>();
}

}  // namespace head_norm_gate

void head_norm_gate_forward_cpu(const HeadNormForward& p, int64_t begin, int64_t end) {
  head_norm_gate::with_kind(p, [&]<typename T, bool kSilu, bool kBonus>() {
    head_norm_gate::forward<T, kSilu, kBonus>(p, begin, end);
  });
}

void head_norm_gate_backward_cpu(const HeadNormBackward& p, int64_t begin, int64_t end) {
  head_norm_gate::with_kind(p, [&]<typename T, bool kSilu, bool kBonus>() {
    head_norm_gate::backward<T, kSilu, kBonus>(p, begin, end);
  });
}

}  // namespace rwkv
