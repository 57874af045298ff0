// Forward pass of norm_shift on a CPU; formulas in norm_shift_cpu.cpp.
#pragma once

#include "norm_shift_cpu_moves.h"

namespace rwkv::norm_shift_rows {

// X, Y: element types of x and of the results.
template <typename X, typename Y> struct NormShiftForwardTask {
  using T = Computing<Y>;

  const NormShiftForward& p;
  TokenRows<T> rows;
  FormedMoves<T> formed;
  T* normal[2];  // first x', then h
  X* rounded;

  explicit NormShiftForwardTask(const NormShiftForward& p) : p(p), rows(p), formed(p, rows) {
    T* room;
    for (T** row : {&normal[0], &normal[1], &room}) rows.scratch.want(*row, rows.stride);
    rows.allocate();
    formed.read_up();
    rounded = reinterpret_cast<X*>(room);
  }

  void run(const TokenBlock& tokens) {
    if (p.mixes != nullptr) read_before(tokens.begin, normal[0]);
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      T* const before = normal[(t - tokens.begin) % 2];
      T* const now = normal[(t - tokens.begin + 1) % 2];
      if (rows.starts_document(t)) std::fill_n(before, rows.stride, T(0));
      const Statistics<T> s = read_stream(t, true, now);
      if (formed.exist() && (t - tokens.begin) % kMovedTokens == 0) {
        formed.form(t, std::min(kMovedTokens, tokens.end - t));
      }
      if (p.mixes != nullptr) write_mixed(t, s, before, now);
      else write_normal(t * p.width, s, now);
      if (p.h_last != nullptr && rows.ends_row(t)) rows.write(p.h_last, t / p.time * p.width, now);
    }
  }

 private:
  void read_before(int64_t token, T* to) const {
    if (rows.starts_row(token)) return rows.read_first(token, to);
    const Statistics<T> s = read_stream(token - 1, false, to);
    each_vector<T>(p.width, [&](int64_t c, auto) { store<T>(to + c, normalised(s, to, c)); });
  }

  // to = x' of a token; x' and statistics of a token that is the task's own are written.
  Statistics<T> read_stream(int64_t token, bool is_own, T* to) const {
    const int64_t at = token * p.width;
    const X* const x = static_cast<const X*>(p.x) + at;
    const T sum = p.out == nullptr ? copy_stream(x, to) : add_branch(x, at, is_own, to);
    if (p.known != nullptr) {
      const T* const known = static_cast<const T*>(p.known) + 2 * token;
      return {known[0], known[1]};
    }
    // In a pass of its own: the mean of squares less the square of the mean would lose what a large
    // mean leaves of the deviation.
    const T mean = sum / static_cast<T>(p.width);
    const T squares = sum_of_squares<T>(to, p.width, mean);
    const T inverse = T(1) / std::sqrt(squares / static_cast<T>(p.width) + static_cast<T>(p.eps));
    if (is_own) {
      T* const statistics = static_cast<T*>(p.statistics) + 2 * token;
      statistics[0] = mean, statistics[1] = inverse;
    }
    return {mean, inverse};
  }

  // Returns the sum of the row, as does add_branch.
  T copy_stream(const X* x, T* to) const {
    Vec<T> sum{};
    each_vector<T>(p.width, [&](int64_t c, auto left) {
      const Vec<T> wide = load_part(x + c, left);
      store<T>(to + c, wide);
      sum += wide;
    });
    return sum_of_lanes<T>(sum);
  }

  T add_branch(const X* x, int64_t at, bool is_own, T* to) const {
    const Y* const out = static_cast<const Y*>(p.out) + at;
    const Y* const gate = p.gate == nullptr ? nullptr : static_cast<const Y*>(p.gate) + at;
    X* const stream = is_own ? static_cast<X*>(p.stream) + at : rounded;
    Vec<T> sum{};
    each_vector<T>(p.width, [&](int64_t c, auto left) {
      Vec<T> branch = load_part(out + c, left);
      if (gate != nullptr) {
        const Sigmoid<T> s(load_part(gate + c, left));
        branch = branch * s.of_z;
      }
      store_part(stream + c, left, load_part(x + c, left) + branch);
      // The norm reads what the backward pass will: the rounded sum.
      const Vec<T> wide = load_part(stream + c, left);
      store<T>(to + c, wide);
      sum += wide;
    });
    return sum_of_lanes<T>(sum);
  }

  RWKV_INLINE Vec<T> normalised(Statistics<T> s, const T* row, int64_t c) const {
    return (load<T>(row + c) - s.mean) * s.inverse * load<T>(rows.weight + c) +
           load<T>(rows.bias + c);
  }

  void write_normal(int64_t at, Statistics<T> s, T* now) const {
    Y* const y = static_cast<Y*>(p.y[0]) + at;
    each_vector<T>(p.width, [&](int64_t c, auto left) {
      const Vec<T> h = normalised(s, now, c);
      store<T>(now + c, h);
      store_part(y + c, left, h);
    });
  }

  void write_mixed(int64_t token, Statistics<T> s, const T* before, T* now) const {
    const int64_t at = token * p.width, count = p.count, stride = rows.stride;
    const int64_t whole = p.batch * p.time * p.width;
    const Y* const moves = p.moves == nullptr ? nullptr : static_cast<const Y*>(p.moves) + at;
    const T *const mixes = rows.mixes, *const made = formed.of_token(token);
    Y* y[kMostShifted];
    for (int64_t i = 0; i < count; ++i) y[i] = static_cast<Y*>(p.y[i]) + at;
    each_vector<T>(p.width, [&](int64_t c, auto left) {
      const Vec<T> h = normalised(s, now, c), delta = load<T>(before + c) - h;
      store<T>(now + c, h);
      for (int64_t i = 0; i < count; ++i) {
        Vec<T> share = load<T>(mixes + i * stride + c);
        if (moves != nullptr) share += load_part(moves + i * whole + c, left);
        if (made != nullptr) share += load<T>(made + i * stride + c);
        store_part(y[i] + c, left, h + delta * share);
      }
    });
  }
};

}  // namespace rwkv::norm_shift_rows
