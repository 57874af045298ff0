// What a task of WKV-4's CPU kernels owns, a group of channels of one batch row: where they lie in
// the tensors, their state and parameters in rows of kStride, and the step over one token.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cpu/row_math.h"
#include "../common/cpu/scratch.h"
#include "../common/cpu/typed_rows.h"
#include "wkv4.h"
#include "wkv4_cpu_exponent.h"

namespace rwkv {

constexpr int64_t kStride = kWkv4Channels;

// What a task owns: channels [first, first + count) of one batch row.
struct ChannelGroup {
  int64_t row, first, count;
  const Wkv4Sizes& p;

  ChannelGroup(const Wkv4Sizes& p, int64_t task) : p(p) {
    const int64_t groups = (p.width + kStride - 1) / kStride;
    row = task / groups;
    first = task % groups * kStride;
    count = std::min(kStride, p.width - first);
  }
  int64_t token(int64_t t) const { return (row * p.time + t) * p.width + first; }
  // rows aa, bb, pp = 0, 1, 2
  int64_t state(int64_t part) const { return (row * 3 + part) * p.width + first; }
  int64_t checkpoint(int64_t n, int64_t part) const {
    return ((row * p.kept + n) * 3 + part) * p.width + first;
  }
  const bool* reset(const bool* all) const { return all == nullptr ? nullptr : all + row * p.time; }
};

// The state and the parameters of a task's channels.
template <typename T> struct ChannelState {
  CompensatedRow<T> aa, bb, pp;
  T *u, *step;

  explicit ChannelState(Scratch<T>& scratch) {
    for (CompensatedRow<T>* row : {&aa, &bb, &pp}) row->want(scratch, kStride);
    for (T** row : {&u, &step}) scratch.want(*row, kStride);
  }

  void read_parameters(const void* w, const void* given_u, const ChannelGroup& at) const {
    read_step(w, at);
    load_row<T>(given_u, kDTypeOf<T>, at.first, at.count, u);
  }

  // step = -exp(w), the decay's exponent per token
  void read_step(const void* w, const ChannelGroup& at) const {
    load_row<T>(w, kDTypeOf<T>, at.first, at.count, step);
    for (int64_t i = 0; i < kStride; i += kLanes<T>) {
      const Vec<T> limited = min<T>(T(kWkv4LargestLogRate), load<T>(step + i));
      store<T>(step + i, -exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, limited)));
    }
  }

  void clear() const {
    aa.fill(0, kStride);
    bb.fill(0, kStride);
    pp.fill(T(kWkv4EmptyExponent), kStride);
  }

  void fold() const {
    for (const CompensatedRow<T>* row : {&aa, &bb, &pp}) fold_low(*row, kStride);
  }
};

template <typename T> void read_tokens(const void* from, DType dtype, const ChannelGroup& at,
                                       int64_t begin, int64_t tokens, T* to) {
  for (int64_t t = 0; t < tokens; ++t) {
    load_row<T>(from, dtype, at.token(begin + t), at.count, to + t * kStride);
  }
}

template <typename T> void write_tokens(void* to, DType dtype, const ChannelGroup& at,
                                        int64_t begin, int64_t tokens, const T* from) {
  for (int64_t t = 0; t < tokens; ++t) {
    store_row<T>(to, dtype, at.token(begin + t), at.count, from + t * kStride);
  }
}

// What the channels of one vector know before a token.
template <typename T> struct ChannelSums {
  Compensated<T> aa, bb, pp;

  RWKV_INLINE ChannelSums(const ChannelState<T>& from, int64_t i)
      : aa(from.aa.load(i)), bb(from.bb.load(i)), pp(from.pp.load(i)) {}

  RWKV_INLINE void store_to(const ChannelState<T>& to, int64_t i) const {
    to.aa.store(i, aa);
    to.bb.store(i, bb);
    to.pp.store(i, pp);
  }

  RWKV_INLINE void take(Vec<T> step, Vec<T> k, Vec<T> v) {
    const Scaled<T> e(pp.plus(step), {k, Vec<T>{}});
    aa = aa.times(e.first).plus(e.second * v);
    bb = bb.times(e.first).plus(e.second);
    pp = e.largest;
  }
};

}  // namespace rwkv
