// Walks whole heads of RWKV-5 and 6 on a CPU: reads the tensors into padded rows of the computing
// type, lets the tiles of wkv5_6_cpu_scan.h do the N x N work, adds the bonus and the chain rule of
// the decay, and writes the results. A head belongs to one thread, so that its sums have a fixed
// order whatever the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../common/cpu/decays.h"
#include "../common/cpu/head_rows.h"
#include "../common/cpu/head_walk.h"
#include "../common/cpu/row_math.h"
#include "../common/cpu/scratch.h"
#include "wkv5_6_cpu.h"
#include "wkv5_6_cpu_decay.h"
#include "wkv5_6_cpu_scan.h"

namespace rwkv {

// decay and slope, its derivative by w, of token t; count: a multiple of kLanes
template <typename T>
void decay_of(const T* w, T* decay, T* slope, int64_t count, int64_t t) {
  const T share = rounding_share<T>(t);
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<T> log_decay = log_decay_of<T>(w + i);
    const Vec<T> d = decay_from_log<T>(log_decay).rounded(share);
    store<T>(decay + i, d);
    store<T>(slope + i, d * log_decay);
  }
}

// The inputs of some tokens of one head, in rows.
template <typename T, bool kDecayPerToken> struct Wkv5_6Rows {
  const int64_t stride;
  T *r, *k, *v, *gy, *decay, *slope, *w, *less, *base;

  Wkv5_6Rows(Scratch<T>& scratch, int64_t tokens, int64_t stride) : stride(stride) {
    for (T** rows : {&r, &k, &v, &gy, &decay, &slope, &w}) scratch.want(*rows, tokens * stride);
    scratch.want(less, stride);
    scratch.want(base, stride);
  }

  // RWKV-5 has one row of decays per head, of which every token has its own rounding.
  template <typename Params>
  void read_decay(const Params& p, const HeadPlace& place, int64_t begin, int64_t tokens) const {
    if (kDecayPerToken) {
      read_rows(p.w, p.w_dtype, place, begin, tokens, w, stride);
      if (p.base != nullptr) load_row<T>(p.base, kDTypeOf<T>, place.head * p.size, p.size, base);
      for (int64_t t = 0, at = 0; t < tokens; ++t, at += stride) {
        add(w + at, base, stride);
        decay_of(w + at, decay + at, slope + at, stride, begin + t);
      }
      return;
    }
    load_row<T>(p.w, p.w_dtype, place.head * place.size, place.size, w);
    for (int64_t i = 0; i < stride; i += kLanes<T>) {
      const Vec<T> log_decay = log_decay_of<T>(w + i);
      const Decay<T> d = decay_from_log<T>(log_decay);
      store<T>(w + i, d.whole);
      store<T>(less + i, d.less);
      store<T>(slope + i, d.rounded(0) * log_decay);
    }
    for (int64_t t = 0, at = 0; t < tokens; ++t, at += stride) {
      const T share = rounding_share<T>(begin + t);
      for (int64_t i = 0; i < stride; i += kLanes<T>) {
        const Decay<T> d{load<T>(w + i), load<T>(less + i)};
        store<T>(decay + at + i, d.rounded(share));
      }
      if (t > 0) std::memcpy(slope + at, slope, stride * sizeof(T));
    }
  }

  Wkv5_6Block<T> block(int64_t begin, int64_t tokens) const {
    Wkv5_6Block<T> b{};
    const int64_t at = begin * stride;
    b.tokens = tokens, b.stride = stride;
    b.r = r + at, b.k = k + at, b.v = v + at, b.d = decay + at, b.gy = gy + at;
    return b;
  }
};

template <typename T, bool kDecayPerToken> class Wkv5_6ForwardHeads {
 public:
  Wkv5_6ForwardHeads(const Wkv5_6Forward& p, int64_t most)
      : p_(p), most_(most), stride_(padded<T>(p.size)), rows_(scratch_, kBlock, stride_) {
    scratch_.want(y_, kBlock * stride_);
    scratch_.want(u_, stride_);
    scratch_.want(states_, most * stride_ * stride_);
    scratch_.want(other_, stride_ * stride_);
    scratch_.allocate();
  }

  void run(int64_t task) {
    walk_heads_forward(p_, HeadGroup(p_, most_, task), stride_, states_, other_,
                       [&](T* state, const HeadTokens& block, const HeadTokens& next) {
                         run_block(state, block.place, block.begin, block.tokens, next);
                       });
  }

 private:
  using Rows = Wkv5_6Rows<T, kDecayPerToken>;

  void run_block(T* state, const HeadPlace& place, int64_t begin, int64_t tokens,
                 const HeadTokens& next_rows) {
    load_row<T>(p_.u, kDTypeOf<T>, place.head * p_.size, p_.size, u_);
    read_rows(p_.r, p_.dtype, place, begin, tokens, rows_.r, stride_);
    read_rows(p_.k, p_.dtype, place, begin, tokens, rows_.k, stride_);
    read_rows(p_.v, p_.dtype, place, begin, tokens, rows_.v, stride_);
    rows_.read_decay(p_, place, begin, tokens);
    Wkv5_6Block<T> b = rows_.block(0, tokens);
    b.y = y_;
    // The bonus takes O(N) per token here, and would cost the tiles N x N.
    for (int64_t at = 0; at < tokens * stride_; at += stride_) {
      set_scaled(y_ + at, dot(b.r + at, u_, b.k + at, stride_), b.v + at, stride_);
    }
    // The next block's rows come while the tiles compute; its reads above would wait for memory.
    prefetch_.start(next_rows);
    for (const void* next : {p_.r, p_.k, p_.v}) prefetch_.add(next, p_.dtype);
    if (kDecayPerToken) prefetch_.add(p_.w, p_.w_dtype);
    prefetch_.share(tiles_);
    b.prefetch = &prefetch_;
    wkv5_6_forward(b, state);
    write_rows(p_.y, p_.dtype, place, begin, tokens, y_, stride_);
  }

  const Wkv5_6Forward& p_;
  const int64_t most_, stride_, tiles_ = tile_count<T>(stride_);
  Scratch<T> scratch_;
  Rows rows_;
  Prefetch prefetch_;
  T *y_, *u_, *states_, *other_;
};

template <typename T, bool kDecayPerToken> class Wkv5_6BackwardHeads {
 public:
  Wkv5_6BackwardHeads(const Wkv5_6Backward& p, int64_t most)
      : p_(p), most_(most), stride_(padded<T>(p.size)),
        longest_(std::min(p.time, p.checkpoint_interval)),
        blocks_((longest_ + kBlock - 1) / kBlock), rows_(scratch_, longest_, stride_) {
    for (T** rows : {&gr_, &gk_, &gv_, &gd_}) scratch_.want(*rows, kBlock * stride_);
    scratch_.want(history_, kBlock * kTile);
    scratch_.want(u_, stride_);
    scratch_.want(block_sum_, stride_);
    scratch_.want(all_gu_, most * stride_);
    scratch_.want(all_gw_, most * stride_);
    scratch_.want(states_, blocks_ * stride_ * stride_);
    scratch_.want(gradients_, most * stride_ * stride_);
    scratch_.want(other_, stride_ * stride_);
    scratch_.allocate();
  }

  void run(int64_t task) {
    const HeadGroup group(p_, most_, task);
    // Sums over the whole sequence: the heads of a group are interleaved, so each has its own row.
    clear_rows(all_gu_, most_ * stride_);
    clear_rows(all_gw_, most_ * stride_);
    walk_heads_backward(p_, group, stride_, gradients_,
                        [&](const HeadPlace& place, int64_t n, T* gradient, const Segment& segment,
                            const HeadTokens& next) {
                          gu_ = all_gu_ + n * stride_, gw_ = all_gw_ + n * stride_,
                          gradient_ = gradient;
                          load_row<T>(p_.u, kDTypeOf<T>, place.head * p_.size, p_.size, u_);
                          run_segment(place, segment, next);
                        });
    for (int64_t n = 0; n < group.count; ++n) {
      const int64_t to = (group.row * p_.heads + group.first + n) * p_.size;
      store_row<T>(p_.gu, kDTypeOf<T>, to, p_.size, all_gu_ + n * stride_);
      void* const gw = kDecayPerToken ? p_.gbase : p_.gw;
      store_row<T>(gw, kDTypeOf<T>, to, p_.size, all_gw_ + n * stride_);
    }
  }

 private:
  using Rows = Wkv5_6Rows<T, kDecayPerToken>;
  static constexpr int64_t kTile = kRows<T> * 4 * kLanes<T>;

  // [value][key] at the start of the segment's block n
  T* state(int64_t n) const { return states_ + n * stride_ * stride_; }

  void run_segment(const HeadPlace& place, const Segment& segment, const HeadTokens& next_rows) {
    const int64_t begin = segment.begin, tokens = segment.tokens;
    read_rows(p_.r, p_.dtype, place, begin, tokens, rows_.r, stride_);
    read_rows(p_.k, p_.dtype, place, begin, tokens, rows_.k, stride_);
    read_rows(p_.v, p_.dtype, place, begin, tokens, rows_.v, stride_);
    read_rows(p_.gy, p_.dtype, place, begin, tokens, rows_.gy, stride_);
    rows_.read_decay(p_, place, begin, tokens);
    read_state(p_, place, segment, stride_, other_);
    transpose(other_, state(0), stride_, stride_);
    for (int64_t n = 1; n * kBlock < tokens; ++n) {
      wkv5_6_advance(rows_.block((n - 1) * kBlock, kBlock), state(n - 1), state(n));
    }
    prefetch_.start(next_rows);
    for (const void* next : {p_.r, p_.k, p_.v, p_.gy}) prefetch_.add(next, p_.dtype);
    if (kDecayPerToken) prefetch_.add(p_.w, p_.w_dtype);
    prefetch_.share(tiles_ * ((tokens + kBlock - 1) / kBlock));
    for (int64_t t = (tokens - 1) / kBlock * kBlock; t >= 0; t -= kBlock) {
      run_block(place, begin, t, std::min(kBlock, tokens - t));
    }
  }

  // t: the block's first token, counted from the segment's
  void run_block(const HeadPlace& place, int64_t segment_begin, int64_t t, int64_t tokens) {
    const int64_t begin = segment_begin + t;
    Wkv5_6Block<T> b = rows_.block(t, tokens);
    b.gr = gr_, b.gk = gk_, b.gv = gv_, b.gd = gd_, b.history = history_, b.prefetch = &prefetch_;
    // The long sums over tokens take a block's sum at a time, and lose that much less.
    clear_rows(block_sum_, stride_);
    for (int64_t n = 0; n < tokens; ++n) start_token(b, n * stride_);
    add(gu_, block_sum_, stride_);
    wkv5_6_backward(b, state(t / kBlock), gradient_);
    // By the chain rule from d to w, for all tokens of the block in one pass.
    multiply(gd_, rows_.slope + t * stride_, tokens * stride_);
    write_rows(p_.gr, p_.dtype, place, begin, tokens, gr_, stride_);
    write_rows(p_.gk, p_.dtype, place, begin, tokens, gk_, stride_);
    write_rows(p_.gv, p_.dtype, place, begin, tokens, gv_, stride_);
    if (kDecayPerToken) write_rows(p_.gw, p_.gw_dtype, place, begin, tokens, gd_, stride_);
    for (int64_t n = 1; n < tokens; ++n) add(gd_, gd_ + n * stride_, stride_);
    add(gw_, gd_, stride_);
  }

  // The gradients of the bonus (u k . r) v, to which the tiles add theirs.
  void start_token(const Wkv5_6Block<T>& b, int64_t at) {
    const T *r = b.r + at, *k = b.k + at, *v = b.v + at, *gy = b.gy + at;
    const T weight = dot(v, gy, stride_);
    set_scaled(gv_ + at, dot(r, u_, k, stride_), gy, stride_);
    set_scaled(gr_ + at, weight, u_, k, stride_);
    set_scaled(gk_ + at, weight, u_, r, stride_);
    add_scaled(block_sum_, weight, r, k, stride_);
    clear_rows(gd_ + at, stride_);
  }

  const Wkv5_6Backward& p_;
  const int64_t most_, stride_, tiles_ = tile_count<T>(stride_), longest_, blocks_;
  Scratch<T> scratch_;
  Rows rows_;
  Prefetch prefetch_;
  T *history_, *states_, *gradients_, *other_, *gr_, *gk_, *gv_, *gd_, *u_, *block_sum_,
      *all_gu_, *all_gw_;
  // the present head's
  T *gradient_ = nullptr, *gu_ = nullptr, *gw_ = nullptr;
};

// The heads' classes with the element type alone left open, as run_heads takes them.
template <bool kDecayPerToken> struct Wkv5_6Heads {
  template <typename T> using Forward = Wkv5_6ForwardHeads<T, kDecayPerToken>;
  template <typename T> using Backward = Wkv5_6BackwardHeads<T, kDecayPerToken>;
};

template <bool kDecayPerToken>
void Wkv5_6CpuKernels<kDecayPerToken>::forward(const Wkv5_6Forward& params, int64_t most,
                                               int64_t begin, int64_t end) {
  run_heads<Wkv5_6Heads<kDecayPerToken>::template Forward>(params, most, begin, end);
}

template <bool kDecayPerToken>
void Wkv5_6CpuKernels<kDecayPerToken>::backward(const Wkv5_6Backward& params, int64_t most,
                                                int64_t begin, int64_t end) {
  run_heads<Wkv5_6Heads<kDecayPerToken>::template Backward>(params, most, begin, end);
}

}  // namespace rwkv
