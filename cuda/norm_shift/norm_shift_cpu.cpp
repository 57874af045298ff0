// CPU kernels of norm_shift. Per token, with x' = x, x + out or x + s(gate) out, rounded:
//
//   n = (x' - mean) inverse      h = n weight + bias      delta = (h of the token before) - h
//   y_i = h + delta m_i          m_i = mixes_i + moves_i
//
//   p = sum_i gy_i      q = sum_i gy_i m_i      gh = p - q + (q of the next token)
//   gmoves_i = gy_i delta       gmixes_i = its sum over all tokens
//   u = gh weight      gx = inverse (u - mean u - n mean(u n)) + gx'
//   gweight = sum of gh n       gbias = sum of gh
//   gout = gx s(gate)           ggate = gx out s'(gate)
//
// A document start has no token before, and passes no q back. A task is a block of tokens of one
// batch row, of all channels, which are the lanes.
#include "norm_shift_cpu_rows.h"

namespace rwkv {
namespace {

using norm_shift_rows::Statistics;
using norm_shift_rows::TokenRows;

// Y: element type of the results.
template <typename Y> struct NormShiftForwardTask {
  using T = Computing<Y>;
  static constexpr int L = kLanes<T>;

  const NormShiftForward& p;
  TokenRows<T> rows;
  T* normal[2];

  explicit NormShiftForwardTask(const NormShiftForward& p) : p(p), rows(p) {
    for (T*& row : normal) rows.scratch.want(row, rows.stride);
    rows.allocate();
  }

  void run(const TokenBlock& tokens) {
    const bool shifts = p.mixes != nullptr;
    if (shifts && rows.starts_row(tokens.begin)) rows.read_last(tokens.begin, normal[0]);
    else if (shifts) read_normal(tokens.begin - 1, false, normal[0]);
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      T* const before = normal[(t - tokens.begin) % 2];
      T* const now = normal[(t - tokens.begin + 1) % 2];
      read_normal(t, true, now);
      if (rows.starts_document(t)) std::fill_n(before, rows.stride, T(0));
      if (shifts) write_mixed(t * p.width, before, now);
      else store_row(p.y[0], p.y_dtype, t * p.width, p.width, now);
      if (p.h_last != nullptr && rows.ends_row(t)) rows.write(p.h_last, t / p.time * p.width, now);
    }
  }

 private:
  // to = h of a token; x' and statistics of a token that is the task's own are written.
  void read_normal(int64_t token, bool is_own, T* to) const {
    const int64_t at = token * p.width;
    load_row(p.x, p.dtype, at, p.width, to);
    if (p.out != nullptr) {
      rows.add_branch(token, to);
      // The norm reads what the backward pass will: the rounded sum.
      void* const stream = is_own ? p.stream : rows.out;
      const int64_t place = is_own ? at : 0;
      store_row(stream, p.dtype, place, p.width, to);
      load_row(stream, p.dtype, place, p.width, to);
    }
    rows.normalise(find_statistics(token, is_own, to), true, to);
  }

  Statistics<T> find_statistics(int64_t token, bool is_own, const T* row) const {
    if (p.known != nullptr) {
      const T* const known = static_cast<const T*>(p.known) + 2 * token;
      return {known[0], known[1]};
    }
    const auto found = norm_shift_rows::statistics_of<T>(row, p.width, p.eps);
    if (is_own) {
      T* const to = static_cast<T*>(p.statistics) + 2 * token;
      to[0] = found.mean, to[1] = found.inverse;
    }
    return found;
  }

  void write_mixed(int64_t at, const T* before, const T* now) const {
    const int64_t whole = p.batch * p.time * p.width;
    const Y* const moves = static_cast<const Y*>(p.moves);
    for (int64_t c = 0; c < p.width; c += L) {
      const int64_t left = p.width - c;
      const Vec<T> h = load<T>(now + c), delta = load<T>(before + c) - h;
      for (int64_t i = 0; i < p.count; ++i) {
        Vec<T> share = load<T>(rows.mixes + i * rows.stride + c);
        if (moves != nullptr) share += load_part(moves + i * whole + at + c, left);
        store_part(static_cast<Y*>(p.y[i]) + at + c, left, h + delta * share);
      }
    }
  }
};

template <typename Y> struct NormShiftBackwardTask {
  using T = Computing<Y>;
  static constexpr int L = kLanes<T>;

  const NormShiftBackward& p;
  TokenRows<T> rows;
  const int64_t mixed, whole;
  // n of the token and of the one before, h of that, and q of the one behind.
  T *now, *earlier, *before, *next;
  T *u, *gx;
  T* sums;  // [norm_shift_sums][stride]

  explicit NormShiftBackwardTask(const NormShiftBackward& p)
      : p(p), rows(p), mixed(p.mixes == nullptr ? 0 : p.count),
        whole(p.batch * p.time * p.width) {
    for (T** row : {&now, &earlier, &before, &next, &u, &gx}) {
      rows.scratch.want(*row, rows.stride);
    }
    rows.scratch.want(sums, (mixed + 2) * rows.stride);
    rows.allocate();
  }

  void run(const TokenBlock& tokens, int64_t block) {
    std::fill_n(sums, (mixed + 2) * rows.stride, T(0));
    read_next(tokens.end);
    Statistics<T> s = read_normal(tokens.end - 1, now);
    for (int64_t t = tokens.end - 1; t >= tokens.begin; --t) {
      const Statistics<T> statistics = s;
      s = read_before(t);
      const auto means = add_token(t);
      if (p.gx != nullptr) write_token(t, statistics, means);
      std::swap(now, earlier);
    }
    if (p.glast != nullptr && rows.starts_row(tokens.begin)) {
      rows.write(p.glast, tokens.begin / p.time * p.width, next);
    }
    const int64_t count = norm_shift_sums(p);
    for (int64_t i = 0; i < count; ++i) {
      rows.write(p.sums, (block * count + i) * p.width, sums + i * rows.stride);
    }
  }

 private:
  struct Means {
    T of_u, of_product;
  };

  Statistics<T> read_normal(int64_t token, T* to) const {
    load_row(p.stream, p.dtype, token * p.width, p.width, to);
    const T* const s = static_cast<const T*>(p.statistics) + 2 * token;
    rows.normalise({s[0], s[1]}, false, to);
    return {s[0], s[1]};
  }

  // earlier = n of the token before t in its batch row; before = what t is mixed with
  Statistics<T> read_before(int64_t t) {
    Statistics<T> s{};
    if (!rows.starts_row(t)) s = read_normal(t - 1, earlier);
    if (mixed == 0) return s;
    if (rows.starts_document(t)) {
      std::fill_n(before, rows.stride, T(0));
    } else if (rows.starts_row(t)) {
      rows.read_last(t, before);
    } else {
      for (int64_t c = 0; c < rows.stride; c += L) {
        store<T>(before + c,
                 load<T>(earlier + c) * load<T>(rows.weight + c) + load<T>(rows.bias + c));
      }
    }
    return s;
  }

  RWKV_INLINE Vec<T> share(int64_t i, int64_t at, int64_t c) const {
    const Vec<T> fixed = load<T>(rows.mixes + i * rows.stride + c);
    if (p.moves == nullptr) return fixed;
    return fixed + load_part(static_cast<const Y*>(p.moves) + i * whole + at + c, p.width - c);
  }

  // next = q of token `end`, unless that has nothing to do with the one before
  void read_next(int64_t end) {
    std::fill_n(next, rows.stride, T(0));
    if (mixed == 0 || rows.starts_row(end) || rows.starts_document(end)) return;
    const int64_t at = end * p.width;
    for (int64_t c = 0; c < p.width; c += L) {
      Vec<T> q{};
      for (int64_t i = 0; i < mixed; ++i) {
        if (p.gy[i] == nullptr) continue;
        q += load_part(static_cast<const Y*>(p.gy[i]) + at + c, p.width - c) * share(i, at, c);
      }
      store<T>(next + c, q);
    }
  }

  // Takes the gradients of the results of token t through the shift: u, next and sums.
  Means add_token(int64_t t) {
    const int64_t at = t * p.width;
    const bool passes = !rows.starts_document(t);
    const T* const gh_last =
        p.gh_last != nullptr && rows.ends_row(t)
            ? static_cast<const T*>(p.gh_last) + t / p.time * p.width
            : nullptr;
    Vec<T> of_u{}, of_product{};
    for (int64_t c = 0; c < p.width; c += L) {
      const int64_t left = p.width - c;
      const Vec<T> n = load<T>(now + c), weight = load<T>(rows.weight + c);
      const Vec<T> delta = load<T>(before + c) - (n * weight + load<T>(rows.bias + c));
      Vec<T> q{}, gh = load<T>(next + c) + add_results(at, c, delta, q);
      store<T>(next + c, passes ? q : Vec<T>{});
      if (gh_last != nullptr) gh += load_part(gh_last + c, left);
      if (p.gnormal != nullptr) gh += load_part(static_cast<const Y*>(p.gnormal) + at + c, left);
      if (p.gx == nullptr) {
        store_part(static_cast<Y*>(p.gnormal_out) + at + c, left, gh);
        continue;
      }
      const Vec<T> product = gh * weight;
      store<T>(u + c, product);
      of_u += product, of_product += product * n;
      add_to(sums + mixed * rows.stride + c, gh * n);
      add_to(sums + (mixed + 1) * rows.stride + c, gh);
    }
    const T channels = static_cast<T>(p.width);
    return {sum_lanes<T, 1>(&of_u)[0] / channels, sum_lanes<T, 1>(&of_product)[0] / channels};
  }

  // Returns p - q of the channels from c on, without shift p alone.
  RWKV_INLINE Vec<T> add_results(int64_t at, int64_t c, Vec<T> delta, Vec<T>& q) {
    const int64_t left = p.width - c;
    if (mixed == 0) return p.gy[0] == nullptr ? Vec<T>{} : load_gradient(0, at + c, left);
    Vec<T> sum{};
    for (int64_t i = 0; i < mixed; ++i) {
      if (p.gy[i] == nullptr) {
        if (p.gmoves != nullptr) {
          store_part(static_cast<Y*>(p.gmoves) + i * whole + at + c, left, Vec<T>{});
        }
        continue;
      }
      const Vec<T> g = load_gradient(i, at + c, left), product = g * delta;
      sum += g, q += g * share(i, at, c);
      add_to(sums + i * rows.stride + c, product);
      if (p.gmoves != nullptr) {
        store_part(static_cast<Y*>(p.gmoves) + i * whole + at + c, left, product);
      }
    }
    return sum - q;
  }

  RWKV_INLINE Vec<T> load_gradient(int64_t i, int64_t at, int64_t left) const {
    return load_part(static_cast<const Y*>(p.gy[i]) + at, left);
  }

  // Takes u through the norm.
  void write_token(int64_t t, Statistics<T> s, Means means) {
    const int64_t at = t * p.width;
    if (p.gstream != nullptr) load_row(p.gstream, p.dtype, at, p.width, gx);
    else std::fill_n(gx, rows.stride, T(0));
    for (int64_t c = 0; c < rows.stride; c += L) {
      const Vec<T> centred = load<T>(u + c) - means.of_u - load<T>(now + c) * means.of_product;
      store<T>(gx + c, load<T>(gx + c) + centred * s.inverse);
    }
    store_row(p.gx, p.dtype, at, p.width, gx);
    if (p.gout != nullptr) write_branch(t);
  }

  void write_branch(int64_t t) {
    const int64_t at = t * p.width;
    if (p.gate == nullptr) return store_row(p.gout, p.out_dtype, at, p.width, gx);
    load_row(p.out, p.out_dtype, at, p.width, rows.out);
    load_row(p.gate, p.out_dtype, at, p.width, rows.gate);
    for (int64_t c = 0; c < rows.stride; c += L) {
      const Sigmoid<T> s(load<T>(rows.gate + c));
      const Vec<T> g = load<T>(gx + c);
      store<T>(rows.gate + c, g * load<T>(rows.out + c) * s.slope());
      store<T>(gx + c, g * s.of_z);
    }
    store_row(p.gout, p.out_dtype, at, p.width, gx);
    store_row(p.ggate, p.out_dtype, at, p.width, rows.gate);
  }

  static RWKV_INLINE void add_to(T* sum, Vec<T> x) { store<T>(sum, load<T>(sum) + x); }
};

}  // namespace

void norm_shift_forward_cpu(const NormShiftForward& p, int64_t begin, int64_t end) {
  with_element_type(p.y_dtype, [&]<typename Y>() {
    NormShiftForwardTask<Y> task(p);
    for (int64_t block = begin; block < end; ++block) task.run(TokenBlock(p.time, block));
  });
}

void norm_shift_backward_cpu(const NormShiftBackward& p, int64_t begin, int64_t end) {
  with_element_type(p.y_dtype, [&]<typename Y>() {
    NormShiftBackwardTask<Y> task(p);
    for (int64_t block = begin; block < end; ++block) task.run(TokenBlock(p.time, block), block);
  });
}

}  // namespace rwkv
