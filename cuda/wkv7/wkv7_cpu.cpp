// CPU kernels of WKV-7: walks whole heads, reads the tensors into padded rows of the computing
// type, lets the tiles of wkv7_cpu_tiles.h do the N x N work, and writes the results. A head
// belongs to one thread, so that its sums have a fixed order whatever the number of threads.
#include "wkv7.h"

#include <algorithm>

#include "../common/cpu/head_rows.h"
#include "../common/cpu/head_walk.h"
#include "../common/cpu/prefetch.h"
#include "../common/cpu/row_math.h"
#include "../common/cpu/scratch.h"
#include "wkv7_cpu_decay.h"
#include "wkv7_cpu_tiles.h"

namespace rwkv {
namespace {

// The inputs of some tokens of one head, in rows.
template <typename T> struct Rows {
  const int64_t stride;
  T *r, *k, *v, *a, *b, *gy, *w, *d, *slope, *u, *base, *zeros;

  Rows(Scratch<T>& scratch, int64_t tokens, int64_t stride) : stride(stride) {
    for (T** rows : {&r, &k, &v, &a, &b, &gy, &w, &d, &slope, &u}) {
      scratch.want(*rows, tokens * stride);
    }
    scratch.want(base, stride);
    scratch.want(zeros, stride);
  }

  template <typename Params>
  void read(const Params& p, const HeadPlace& place, int64_t begin, int64_t tokens) const {
    read_rows(p.r, p.dtype, place, begin, tokens, r, stride);
    read_rows(p.k, p.dtype, place, begin, tokens, k, stride);
    read_rows(p.v, p.dtype, place, begin, tokens, v, stride);
    read_rows(p.a, p.dtype, place, begin, tokens, a, stride);
    read_rows(p.b, p.dtype, place, begin, tokens, b, stride);
    read_rows(p.w, p.w_dtype, place, begin, tokens, w, stride);
    if (p.base != nullptr) load_row<T>(p.base, kDTypeOf<T>, place.head * p.size, p.size, base);
    for (int64_t t = 0, at = 0; t < tokens; ++t, at += stride) {
      decay_of(w + at, base, d + at, slope + at, stride, begin + t);
    }
  }

  DeltaBlock<T> block(int64_t begin, int64_t tokens) const {
    DeltaBlock<T> block{};
    const int64_t at = begin * stride;
    block.tokens = tokens, block.stride = stride;
    block.r = r + at, block.d = d + at, block.k = k + at, block.v = v + at, block.a = a + at;
    block.b = b + at, block.gy = gy + at, block.u = u + at, block.zeros = zeros;
    return block;
  }
};

template <typename Params> void add_inputs(Prefetch& prefetch, const Params& p) {
  for (const void* next : {p.r, p.k, p.v, p.a, p.b}) prefetch.add(next, p.dtype);
  prefetch.add(p.w, p.w_dtype);
}

template <typename T> class ForwardHeads {
 public:
  ForwardHeads(const Wkv7Forward& p, int64_t most)
      : p_(p), most_(most), stride_(padded<T>(p.size)), rows_(scratch_, kBlock, stride_) {
    scratch_.want(y_, kBlock * stride_);
    scratch_.want(bonus_, stride_);
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
  void run_block(T* state, const HeadPlace& place, int64_t begin, int64_t tokens,
                 const HeadTokens& next) {
    rows_.read(p_, place, begin, tokens);
    if (p_.bonus != nullptr) write_bonus(place, begin, tokens);
    // The next block's rows come while the tiles compute.
    prefetch_.start(next);
    add_inputs(prefetch_, p_);
    prefetch_.share(forward_tile_count<T>(stride_) * tokens);
    DeltaBlock<T> block = rows_.block(0, tokens);
    block.y = y_, block.prefetch = &prefetch_;
    delta_forward<T, true>(block, state);
    write_rows(p_.y, p_.dtype, place, begin, tokens, y_, stride_);
  }

  void write_bonus(const HeadPlace& place, int64_t begin, int64_t tokens) {
    load_row<T>(p_.bonus, kDTypeOf<T>, place.head * p_.size, p_.size, bonus_);
    for (int64_t t = 0, at = 0; t < tokens; ++t, at += stride_) {
      static_cast<T*>(p_.s)[place.number(begin + t)] =
          dot(rows_.r + at, bonus_, rows_.k + at, stride_);
    }
  }

  const Wkv7Forward& p_;
  const int64_t most_, stride_;
  Scratch<T> scratch_;
  Rows<T> rows_;
  Prefetch prefetch_;
  T *y_, *bonus_, *states_, *other_;
};

template <typename T> class BackwardHeads {
 public:
  BackwardHeads(const Wkv7Backward& p, int64_t most)
      : p_(p), most_(most), stride_(padded<T>(p.size)),
        longest_(std::min(p.time, p.checkpoint_interval)),
        blocks_((longest_ + kBlock - 1) / kBlock), rows_(scratch_, longest_, stride_) {
    for (T** rows : {&gr_, &gk_, &gv_, &ga_, &gb_, &gd_}) scratch_.want(*rows, kBlock * stride_);
    scratch_.want(ab_, kBlock);
    scratch_.want(rb_, kBlock);
    scratch_.want(history_, (kBlock + 1) * kDeltaRows<T> * stride_);
    scratch_.want(states_, blocks_ * stride_ * stride_);
    scratch_.want(gradients_, most * stride_ * stride_);
    scratch_.want(all_gbase_, most * stride_);
    scratch_.want(all_gbonus_, most * stride_);
    for (T** row : {&bonus_, &block_sum_}) scratch_.want(*row, stride_);
    scratch_.want(walk_, stride_ * stride_);
    scratch_.allocate();
  }

  void run(int64_t task) {
    const HeadGroup group(p_, most_, task);
    // Over the whole sequence: the heads of a group are interleaved, so each has its own row.
    for (T* sums : {all_gbase_, all_gbonus_}) clear_rows(sums, most_ * stride_);
    walk_heads_backward(p_, group, stride_, gradients_,
                        [&](const HeadPlace& place, int64_t n, T* gradient, const Segment& segment,
                            const HeadTokens& next) {
                          gbase_ = all_gbase_ + n * stride_;
                          gbonus_ = all_gbonus_ + n * stride_;
                          run_segment(place, gradient, segment, next);
                        });
    for (int64_t n = 0; n < group.count; ++n) {
      const int64_t to = (group.row * p_.heads + group.first + n) * p_.size;
      store_row<T>(p_.gbase, kDTypeOf<T>, to, p_.size, all_gbase_ + n * stride_);
      if (p_.gbonus == nullptr) continue;
      store_row<T>(p_.gbonus, kDTypeOf<T>, to, p_.size, all_gbonus_ + n * stride_);
    }
  }

 private:
  // [value][key] at the start of the segment's block n
  T* state(int64_t n) const { return states_ + n * stride_ * stride_; }

  void run_segment(const HeadPlace& place, T* gradient, const Segment& segment,
                   const HeadTokens& next) {
    const int64_t begin = segment.begin, tokens = segment.tokens;
    rows_.read(p_, place, begin, tokens);
    read_rows(p_.gy, p_.dtype, place, begin, tokens, rows_.gy, stride_);
    read_state(p_, place, segment, stride_, walk_);
    // The forward tiles give the state [key][value]; the backward tiles want [value][key].
    for (int64_t t = 0; t < tokens; t += kBlock) {
      transpose(walk_, state(t / kBlock), stride_, stride_);
      delta_forward<T, false>(rows_.block(t, std::min(kBlock, tokens - t)), walk_);
    }
    prefetch_.start(next);
    add_inputs(prefetch_, p_);
    prefetch_.add(p_.gy, p_.dtype);
    prefetch_.share(stride_ / kDeltaRows<T> * ((tokens + kBlock - 1) / kBlock));
    for (int64_t t = (tokens - 1) / kBlock * kBlock; t >= 0; t -= kBlock) {
      run_block(place, gradient, begin, t, std::min(kBlock, tokens - t));
    }
  }

  // t: the block's first token, counted from the segment's
  void run_block(const HeadPlace& place, T* gradient, int64_t segment_begin, int64_t t,
                 int64_t tokens) {
    const int64_t begin = segment_begin + t;
    DeltaBlock<T> block = rows_.block(t, tokens);
    block.gr = gr_, block.gk = gk_, block.gv = gv_, block.ga = ga_, block.gb = gb_;
    block.gd = gd_, block.ab = ab_, block.rb = rb_, block.history = history_;
    block.prefetch = &prefetch_;
    for (T* rows : {gr_, gk_, ga_, gb_, gd_}) clear_rows(rows, tokens * stride_);
    if (p_.gs != nullptr) start_with_bonus(place, begin, block);
    // With these products of neighbouring tokens the tiles find gu of a token before its G.
    for (int64_t n = 1; n < tokens; ++n) {
      const int64_t at = n * stride_;
      ab_[n] = dot(block.a + at, block.b + at - stride_, stride_);
      rb_[n] = dot(block.r + at - stride_, block.b + at - stride_, stride_);
    }
    delta_backward(block, state(t / kBlock), gradient);
    multiply(gd_, rows_.slope + t * stride_, tokens * stride_);
    write_rows(p_.gr, p_.dtype, place, begin, tokens, gr_, stride_);
    write_rows(p_.gk, p_.dtype, place, begin, tokens, gk_, stride_);
    write_rows(p_.gv, p_.dtype, place, begin, tokens, gv_, stride_);
    write_rows(p_.ga, p_.dtype, place, begin, tokens, ga_, stride_);
    write_rows(p_.gb, p_.dtype, place, begin, tokens, gb_, stride_);
    write_rows(p_.gw, p_.gw_dtype, place, begin, tokens, gd_, stride_);
    // The long sum over tokens takes a block's at a time, and loses that much less.
    for (int64_t n = 1; n < tokens; ++n) add(gd_, gd_ + n * stride_, stride_);
    add(gbase_, gd_, stride_);
  }

  // The bonus's share of gr and gk, to which the tiles add theirs, and gbonus.
  void start_with_bonus(const HeadPlace& place, int64_t begin, const DeltaBlock<T>& block) {
    load_row<T>(p_.bonus, kDTypeOf<T>, place.head * p_.size, p_.size, bonus_);
    clear_rows(block_sum_, stride_);
    for (int64_t t = 0, at = 0; t < block.tokens; ++t, at += stride_) {
      const T gs = static_cast<const T*>(p_.gs)[place.number(begin + t)];
      set_scaled(gr_ + at, gs, bonus_, block.k + at, stride_);
      set_scaled(gk_ + at, gs, bonus_, block.r + at, stride_);
      add_scaled(block_sum_, gs, block.r + at, block.k + at, stride_);
    }
    add(gbonus_, block_sum_, stride_);
  }

  const Wkv7Backward& p_;
  const int64_t most_, stride_, longest_, blocks_;
  Scratch<T> scratch_;
  Rows<T> rows_;
  Prefetch prefetch_;
  T *ab_, *rb_, *history_, *states_, *gradients_, *walk_, *gr_, *gk_, *gv_, *ga_, *gb_, *gd_,
      *all_gbase_, *all_gbonus_, *bonus_, *block_sum_;
  T *gbase_ = nullptr, *gbonus_ = nullptr;  // the present head's
};

}  // namespace

void wkv7_forward_cpu(const Wkv7Forward& params, int64_t most, int64_t begin, int64_t end) {
  run_heads<ForwardHeads>(params, most, begin, end);
}

void wkv7_backward_cpu(const Wkv7Backward& params, int64_t most, int64_t begin, int64_t end) {
  run_heads<BackwardHeads>(params, most, begin, end);
}

}  // namespace rwkv
