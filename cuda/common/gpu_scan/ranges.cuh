// How the backward passes of RWKV-5, 6 and 7 divide the tokens into ranges, so that their
// working memory does not grow with the length; and how that memory is divided.
#pragma once

#include "../params/launch_options.h"
#include "slices.cuh"

namespace rwkv {

// The working memory of a backward pass with `results` sums over values per token and `totals` per
// head: first the states before every chunk of a range, then the slices' parts.
template <class TileType> class BackwardMemory {
 public:
  // always_replays: the states that the forward pass kept do not serve as they are. with_gradients:
  // there is room for the gradients of the states after each segment of checkpoint_interval tokens.
  BackwardMemory(const HeadSizes& p, const LaunchOptions& options, int64_t results, int64_t totals,
                 bool always_replays = false, bool with_gradients = false)
      : p_(p), results_(results), totals_(totals), with_gradients_(with_gradients),
        replays_(always_replays || ceil_div(p.time, TileType::kChunk) != p.kept) {
    const int64_t period = p.kept == 1 ? p.time : p.checkpoint_interval;
    const int64_t fitting = options.most_floats / (floats_of(period) + 1);
    const int64_t periods = ceil_div(p.time, period);
    tokens_ = fitting >= periods ? p.time : (fitting > 1 ? fitting : 1) * period;
  }

  int64_t floats() const { return floats_of(tokens_); }

  // Goes through ranges from the last to the first: run(range, states) with the states before every
  // chunk, which are those that the forward pass kept or what replay(range, from, to) makes of them
  // in `memory`. Both return 0 or an error's number. States that were kept elsewhere than before
  // chunks cannot be served.
  template <typename Replay, typename Run>
  int for_ranges(const void* checkpoints, float* memory, Replay replay, Run run) const {
    if (p_.kept > 1 && p_.checkpoint_interval % TileType::kChunk != 0) return kUnsupported;
    for (int64_t n = ceil_div(p_.time, tokens_) - 1; n >= 0; --n) {
      const int64_t begin = n * tokens_;
      const TokenRange range{begin, begin + tokens_ < p_.time ? begin + tokens_ : p_.time};
      StatesAt<const float*> states{static_cast<const float*>(checkpoints), p_.checkpoint_interval,
                                    p_.kept, 0};
      if (replays_) {
        const StatesAt<float*> to = chunk_states(memory, range);
        const int error = replay(range, states, to);
        if (error != 0) return error;
        states = {to.base, to.every, to.count, to.first};
      }
      const int error = run(range, states);
      if (error != 0) return error;
    }
    return 0;
  }

  float* slices(float* memory) const { return memory + states_of(tokens_); }
  // By the segment's first token.
  StatesAt<float*> gradients(float* memory, const TokenRange& range) const {
    return {slices(memory) + layout_of(tokens_).floats(), p_.checkpoint_interval,
            ceil_div(range.end - range.begin, p_.checkpoint_interval), range.begin};
  }

  // sums[i]: result number i of the kernels, [B, T, H, N], of which the range's tokens are written;
  // result number `of_w` is of gw_dtype, the others are of the call's type.
  int add_results(const TokenRange& range, float* memory, void* const* sums, int64_t of_w,
                  void* stream) const {
    const int64_t tokens = range.end - range.begin, width = p_.heads * p_.size;
    const SliceLayout layout = layout_of(tokens);
    const PartOfRows at{p_.batch, tokens * width, p_.time * width, range.begin * width};
    for (int64_t i = 0; i < results_; ++i) {
      const DType dtype = i == of_w ? p_.gw_dtype : p_.dtype;
      const int error = add(slices(memory) + layout.result(i, 0), at, sums[i], dtype, stream);
      if (error != 0) return error;
    }
    return 0;
  }
  // sums[i]: total number i of the kernels, fp32 [B, H, N], or null.
  int add_totals(float* memory, void* const* sums, void* stream) const {
    const SliceLayout layout = layout_of(0);
    const int64_t count = layout.per_head;
    for (int64_t i = 0; i < totals_; ++i) {
      if (sums[i] == nullptr) continue;
      const int error = add(slices(memory) + layout.total(i, 0), {1, count, count, 0}, sums[i],
                            DType::kFloat, stream);
      if (error != 0) return error;
    }
    return 0;
  }

 private:
  StatesAt<float*> chunk_states(float* memory, const TokenRange& range) const {
    return {memory, TileType::kChunk, ceil_div(range.end - range.begin, TileType::kChunk),
            range.begin};
  }
  SliceLayout layout_of(int64_t tokens) const {
    return SliceLayout(p_, tokens, TileType::kSlices, results_, totals_);
  }
  int64_t states_of(int64_t tokens) const {
    const int64_t chunks = ceil_div(tokens, TileType::kChunk);
    return replays_ ? p_.batch * p_.heads * chunks * p_.size * p_.size : 0;
  }
  int64_t gradients_of(int64_t tokens) const {
    const int64_t segments = with_gradients_ ? ceil_div(tokens, p_.checkpoint_interval) : 0;
    return p_.batch * p_.heads * segments * p_.size * p_.size;
  }
  int64_t floats_of(int64_t tokens) const {
    return states_of(tokens) + layout_of(tokens).floats() + gradients_of(tokens);
  }

  static int add(const float* parts, const PartOfRows& at, void* sum, DType dtype, void* stream) {
    return TileType::kSlices == 1
               ? 0
               : add_slices(parts, TileType::kSlices, at, sum, dtype, stream);
  }

  const HeadSizes p_;
  const int64_t results_, totals_;
  const bool with_gradients_;
  const bool replays_;  // the states before every chunk are not those that the forward pass kept
  int64_t tokens_;  // per range
};

}  // namespace rwkv
