// Walks one head's sequence forwards or backwards, segment by segment, and moves its state between
// tensors and working memory. The same for all operators with a matrix state.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu_head_rows.h"
#include "cpu_matrix.h"
#include "cpu_row_math.h"
#include "cpu_segments.h"
#include "cpu_tiles.h"

namespace rwkv {

// state, other: stride x stride, with padding already zero; state is [key][value] meanwhile.
// run_block(begin, tokens) advances `state`. Params: as OuterForward or Wkv7Forward.
template <typename T, typename Params, typename RunBlock>
void walk_forward(const Params& p, const HeadPlace& place, int64_t stride, T* state, T* other,
                  RunBlock run_block) {
  const int64_t square = p.size * p.size;
  clear_rows(state, stride * stride);
  if (p.state != nullptr) {
    const T* given = static_cast<const T*>(p.state) + place.task * square;
    copy_matrix(given, p.size, other, stride, p.size);
    transpose(other, state, stride, stride);
  }
  for (const Segment& segment : cut_sequence(place.reset(p.reset), p.time, p.keep_every)) {
    if (segment.starts_document) clear_rows(state, stride * stride);
    if (p.checkpoints != nullptr && segment.begin % p.keep_every == 0) {
      const int64_t index = place.task * p.kept + segment.begin / p.keep_every;
      T* kept = static_cast<T*>(p.checkpoints) + index * square;
      copy_matrix(state, stride, kept, p.size, p.size);
    }
    for (int64_t t = 0; t < segment.tokens; t += kBlock) {
      run_block(segment.begin + t, std::min(kBlock, segment.tokens - t));
    }
  }
  transpose(state, other, stride, stride);
  T* left = static_cast<T*>(p.final_state) + place.task * square;
  copy_matrix(other, stride, left, p.size, p.size);
}

// The state [key][value] in front of a segment.
template <typename T, typename Params>
void read_state(const Params& p, const HeadPlace& place, const Segment& segment, int64_t stride,
                T* state) {
  if (segment.starts_document) return clear_rows(state, stride * stride);
  const int64_t index = place.task * p.kept + segment.begin / p.keep_every;
  const T* kept = static_cast<const T*>(p.checkpoints) + index * p.size * p.size;
  copy_matrix(kept, p.size, state, stride, p.size);
}

// gradient: stride x stride, [value][key], with padding already zero. run_segment(segment), from the
// last to the first, turns the gradient of the state behind the segment into that before it.
template <typename T, typename Params, typename RunSegment>
void walk_backward(const Params& p, const HeadPlace& place, int64_t stride, T* gradient,
                   RunSegment run_segment) {
  const int64_t square = p.size * p.size;
  clear_rows(gradient, stride * stride);
  if (p.gfinal_state != nullptr) {
    const T* given = static_cast<const T*>(p.gfinal_state) + place.task * square;
    copy_matrix(given, p.size, gradient, stride, p.size);
  }
  const auto segments = cut_sequence(place.reset(p.reset), p.time, p.keep_every);
  for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
    run_segment(*segment);
    // What came before the document does not act on it.
    if (segment->starts_document) clear_rows(gradient, stride * stride);
  }
  T* left = static_cast<T*>(p.gstate) + place.task * square;
  copy_matrix(gradient, stride, left, p.size, p.size);
}

// Runs heads.run(task) for tasks [begin, end), with Heads<double> or Heads<float>.
template <template <typename> typename Heads, typename Params>
void run_heads(const Params& p, int64_t begin, int64_t end) {
  const auto run = [&](auto heads) {
    for (int64_t task = begin; task < end; ++task) heads.run(task);
  };
  if (p.dtype == DType::kDouble) run(Heads<double>(p));
  else run(Heads<float>(p));
}

}  // namespace rwkv
