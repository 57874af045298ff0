// Backward pass of norm_shift on a CPU; formulas in norm_shift_cpu.cpp.
#pragma once

#include "norm_shift_cpu_moves.h"

namespace rwkv::norm_shift_rows {

template <typename X, typename Y> struct NormShiftBackwardTask {
  using T = Computing<Y>;

  const NormShiftBackward& p;
  TokenRows<T> rows;
  FormedMoves<T> formed;
  const int64_t mixed, whole;
  // n of the token and of the one before, what replaces h of that one, and q of the one behind.
  T *now, *earlier, *first, *next;
  T* u;
  T* sums;  // [norm_shift_sums][stride]

  explicit NormShiftBackwardTask(const NormShiftBackward& p)
      : p(p), rows(p), formed(p, rows), mixed(p.mixes == nullptr ? 0 : p.count),
        whole(p.batch * p.time * p.width) {
    for (T** row : {&now, &earlier, &first, &next, &u}) rows.scratch.want(*row, rows.stride);
    rows.scratch.want(sums, (mixed + 2) * rows.stride);
    rows.allocate();
    formed.read_up();
  }

  void run(const TokenBlock& tokens, int64_t block) {
    std::fill_n(sums, (mixed + 2) * rows.stride, T(0));
    if (p.gmoves != nullptr) clear_moves(tokens);
    read_next(tokens.end);
    read_now(tokens.end - 1);
    for (int64_t t = tokens.end - 1; t >= tokens.begin; --t) {
      const int64_t ahead = (t - tokens.begin) % kMovedTokens;
      if (formed.exist() && (ahead == kMovedTokens - 1 || t == tokens.end - 1)) {
        formed.form(t - ahead, ahead + 1);
      }
      const auto means = add_token(t);
      if (p.gx != nullptr) write_token(t, means);
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

  static const Y* typed(const void* tensor, int64_t at) {
    return tensor == nullptr ? nullptr : static_cast<const Y*>(tensor) + at;
  }

  Statistics<T> statistics_of(int64_t token) const {
    const T* const s = static_cast<const T*>(p.statistics) + 2 * token;
    return {s[0], s[1]};
  }

  void read_now(int64_t token) {
    const X* const stream = static_cast<const X*>(p.stream) + token * p.width;
    const Statistics<T> s = statistics_of(token);
    each_vector<T>(p.width, [&](int64_t c, auto left) {
      store<T>(now + c, (load_part(stream + c, left) - s.mean) * s.inverse);
    });
  }

  // The gradients of the results that have one, and the shares of the token in them.
  struct Results {
    const Y *gy[kMostShifted], *moves[kMostShifted];
    Y* gmoves[kMostShifted];
    const T *mixes[kMostShifted], *made[kMostShifted];
    T* sums[kMostShifted];
    int64_t count = 0;

    RWKV_INLINE Vec<T> share(int64_t i, int64_t c, auto left) const {
      const Vec<T> fixed = load<T>(mixes[i] + c);
      if (made[i] != nullptr) return fixed + load<T>(made[i] + c);
      return moves[i] == nullptr ? fixed : fixed + load_part(moves[i] + c, left);
    }
  };

  Results results_of(int64_t token) const {
    Results r;
    const int64_t at = token * p.width;
    const T* const made = formed.of_token(token);
    for (int64_t i = 0; i < mixed; ++i) {
      const int64_t moved = i * whole + at;
      if (p.gy[i] == nullptr) continue;
      r.gy[r.count] = typed(p.gy[i], at), r.moves[r.count] = typed(p.moves, moved);
      r.gmoves[r.count] = p.gmoves == nullptr ? nullptr : static_cast<Y*>(p.gmoves) + moved;
      r.mixes[r.count] = rows.mixes + i * rows.stride;
      r.made[r.count] = made == nullptr ? nullptr : made + i * rows.stride;
      r.sums[r.count++] = sums + i * rows.stride;
    }
    return r;
  }

  // The moves of a result that nothing was computed from have no gradient.
  void clear_moves(const TokenBlock& tokens) const {
    const int64_t count = (tokens.end - tokens.begin) * p.width;
    for (int64_t i = 0; i < mixed; ++i) {
      Y* const to = static_cast<Y*>(p.gmoves) + i * whole + tokens.begin * p.width;
      if (p.gy[i] == nullptr) std::memset(static_cast<void*>(to), 0, count * sizeof(Y));
    }
  }

  // next = q of token `end`, unless that has nothing to do with the one before
  void read_next(int64_t end) {
    std::fill_n(next, rows.stride, T(0));
    if (mixed == 0 || rows.starts_row(end) || rows.starts_document(end)) return;
    if (formed.exist()) formed.form(end, 1);
    const Results r = results_of(end);
    each_vector<T>(p.width, [&](int64_t c, auto left) {
      Vec<T> q{};
      for (int64_t i = 0; i < r.count; ++i) q += load_part(r.gy[i] + c, left) * r.share(i, c, left);
      store<T>(next + c, q);
    });
  }

  // Takes the gradients of the results of token t through the shift: u, next and sums. Reads n of
  // the token before.
  Means add_token(int64_t t) {
    const int64_t at = t * p.width;
    const bool starts_row = rows.starts_row(t), passes = !rows.starts_document(t);
    const bool has_normal = passes && !starts_row;
    if (mixed != 0 && !has_normal) rows.read_first(t, first);
    const Statistics<T> s = starts_row ? Statistics<T>{} : statistics_of(t - 1);
    const X* const stream = static_cast<const X*>(p.stream) + (starts_row ? at : at - p.width);
    const T *const weight = rows.weight, *const bias = rows.bias, *const here = now;
    const T* const replaced = first;
    T *const there = earlier, *const behind = next;
    const Results r = results_of(t);
    const ShiftedGradient gradient(*this, t);
    Vec<T> of_u{}, of_product{};
    each_vector<T>(p.width, [&](int64_t c, auto left) {
      const Vec<T> w = load<T>(weight + c), b = load<T>(bias + c);
      const Vec<T> before = (load_part(stream + c, left) - s.mean) * s.inverse;
      store<T>(there + c, before);
      const Vec<T> h = has_normal ? before * w + b : load<T>(replaced + c);
      const Vec<T> delta = h - (load<T>(here + c) * w + b);
      Vec<T> p{}, q{};
      for (int64_t i = 0; i < r.count; ++i) {
        const Vec<T> g = load_part(r.gy[i] + c, left), product = g * delta;
        p += g, q += g * r.share(i, c, left);
        add_to(r.sums[i] + c, product);
        if (r.gmoves[i] != nullptr) store_part(r.gmoves[i] + c, left, product);
      }
      gradient.take(c, left, p - q + load<T>(behind + c), of_u, of_product);
      store<T>(behind + c, passes ? q : Vec<T>{});
    });
    const T channels = static_cast<T>(this->p.width);
    return {sum_of_lanes<T>(of_u) / channels, sum_of_lanes<T>(of_product) / channels};
  }

  // What becomes of gh, vector by vector.
  struct ShiftedGradient {
    const Y *const gy, *const gnormal;
    const T *gh_last = nullptr, *const weight, *const now;
    T *const u, *const gweight, *const gbias;
    Y* const gnormal_out;

    ShiftedGradient(const NormShiftBackwardTask& task, int64_t t)
        : gy(typed(task.mixed == 0 ? task.p.gy[0] : nullptr, t * task.p.width)),
          gnormal(typed(task.p.gnormal, t * task.p.width)), weight(task.rows.weight),
          now(task.now), u(task.u), gweight(task.sums + task.mixed * task.rows.stride),
          gbias(gweight + task.rows.stride),
          gnormal_out(const_cast<Y*>(typed(task.p.gnormal_out, t * task.p.width))) {
      if (task.p.gh_last != nullptr && task.rows.ends_row(t)) {
        gh_last = static_cast<const T*>(task.p.gh_last) + t / task.p.time * task.p.width;
      }
    }

    // Adds to the sums of u and u n.
    RWKV_INLINE void take(int64_t c, auto left, Vec<T> gh, Vec<T>& of_u,
                          Vec<T>& of_product) const {
      if (gy != nullptr) gh += load_part(gy + c, left);
      if (gh_last != nullptr) gh += load_part(gh_last + c, left);
      if (gnormal != nullptr) gh += load_part(gnormal + c, left);
      if (gnormal_out != nullptr) return store_part(gnormal_out + c, left, gh);
      const Vec<T> product = gh * load<T>(weight + c), n = load<T>(now + c);
      store<T>(u + c, product);
      of_u += product, of_product += product * n;
      add_to(gweight + c, gh * n);
      add_to(gbias + c, gh);
    }
  };

  // Takes u through the norm.
  void write_token(int64_t t, Means means) const {
    const int64_t at = t * p.width;
    const T inverse = statistics_of(t).inverse;
    const X* const gstream = p.gstream == nullptr ? nullptr : static_cast<const X*>(p.gstream) + at;
    X* const gx = static_cast<X*>(p.gx) + at;
    Y* const gout = p.gout == nullptr ? nullptr : static_cast<Y*>(p.gout) + at;
    Y* const ggate = p.gate == nullptr ? nullptr : static_cast<Y*>(p.ggate) + at;
    const Y *const out = typed(p.out, at), *const gate = typed(p.gate, at);
    const T *const here = now, *const scaled = u;
    each_vector<T>(p.width, [&](int64_t c, auto left) {
      const Vec<T> n = load<T>(here + c);
      Vec<T> g = (load<T>(scaled + c) - means.of_u - n * means.of_product) * inverse;
      if (gstream != nullptr) g += load_part(gstream + c, left);
      store_part(gx + c, left, g);
      if (gate != nullptr) {
        const Sigmoid<T> s(load_part(gate + c, left));
        store_part(ggate + c, left, g * load_part(out + c, left) * s.slope());
        store_part(gout + c, left, g * s.of_z);
      } else if (gout != nullptr) {
        store_part(gout + c, left, g);
      }
    });
  }

  static RWKV_INLINE void add_to(T* sum, Vec<T> x) { store<T>(sum, load<T>(sum) + x); }
};

}  // namespace rwkv::norm_shift_rows
