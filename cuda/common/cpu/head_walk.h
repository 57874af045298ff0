// Walks the sequences of some heads of one batch row forwards or backwards, segment by segment, and
// moves their states between tensors and working memory. The same for all operators with a matrix
// state.
//
// The heads are interleaved segment by segment: the tokens of a head lie in different pages of
// memory, and those of its neighbours in the same ones. At 8192 tokens this is 15 % faster than
// walking one head to its end before the next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "head_rows.h"
#include "row_math.h"
#include "segments.h"
#include "tiles.h"

namespace rwkv {

// Tokens that a head takes at its turn when no states are kept: whole blocks, so that the results
// are those with states kept; few enough that at 8192 tokens one costs what it costs at 512.
constexpr int64_t kTurn = 32 * kBlock;

// Heads [first, first + count) of a batch row; task: row * ceil(heads / most) + group number.
struct HeadGroup {
  int64_t row, first, count;

  HeadGroup(const HeadSizes& p, int64_t most, int64_t task) {
    const int64_t groups = (p.heads + most - 1) / most;
    row = task / groups;
    first = task % groups * most;
    count = std::min(most, p.heads - first);
  }
};

// Moves a square state between a tensor and padded working memory. Padding of `to` is left alone.
// from, to: rows of `from_stride` and `to_stride` elements.
template <typename T>
void copy_matrix(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    std::memcpy(to + i * to_stride, from + i * from_stride, size * sizeof(T));
  }
}

// states: one of stride x stride for every head of the group, [key][value] meanwhile; other: one
// more; the padding of all is zero. run_block(state, block, next) advances `state` by the tokens of
// `block`; `next` is what the following call will get. Params: as Wkv5_6Forward or Wkv7Forward.
template <typename T, typename Params, typename RunBlock>
void walk_heads_forward(const Params& p, const HeadGroup& group, int64_t stride, T* states,
                        T* other, RunBlock run_block) {
  const int64_t square = p.size * p.size, padded_square = stride * stride;
  const int64_t first_task = group.row * p.heads + group.first;
  clear_rows(states, group.count * padded_square);
  for (int64_t n = 0; n < group.count && p.state != nullptr; ++n) {
    const T* given = static_cast<const T*>(p.state) + (first_task + n) * square;
    copy_matrix(given, p.size, other, stride, p.size);
    transpose(other, states + n * padded_square, stride, stride);
  }
  const bool* reset = p.reset == nullptr ? nullptr : p.reset + group.row * p.time;
  const auto segments = cut_sequence(reset, p.time, p.kept > 0 ? p.checkpoint_interval : kTurn);
  const auto first_block = [&](size_t index, int64_t n) -> HeadTokens {
    if (n == group.count) n = 0, ++index;
    const HeadPlace place(p, first_task + n);
    if (index == segments.size()) return {place, 0, 0};
    return {place, segments[index].begin, std::min(kBlock, segments[index].tokens)};
  };
  for (size_t index = 0; index < segments.size(); ++index) {
    const Segment& segment = segments[index];
    for (int64_t n = 0; n < group.count; ++n) {
      const HeadPlace place(p, first_task + n);
      T* const state = states + n * padded_square;
      if (segment.starts_document) clear_rows(state, padded_square);
      if (p.checkpoints != nullptr && segment.begin % p.checkpoint_interval == 0) {
        const int64_t index = place.task * p.kept + segment.begin / p.checkpoint_interval;
        T* kept = static_cast<T*>(p.checkpoints) + index * square;
        copy_matrix(state, stride, kept, p.size, p.size);
      }
      const auto block = [&](int64_t t) -> HeadTokens {
        return {place, segment.begin + t, std::min(kBlock, segment.tokens - t)};
      };
      for (int64_t t = 0; t < segment.tokens; t += kBlock) {
        const bool more = t + kBlock < segment.tokens;
        run_block(state, block(t), more ? block(t + kBlock) : first_block(index, n + 1));
      }
    }
  }
  for (int64_t n = 0; n < group.count && p.final_state != nullptr; ++n) {
    transpose(states + n * padded_square, other, stride, stride);
    T* left = static_cast<T*>(p.final_state) + (first_task + n) * square;
    copy_matrix(other, stride, left, p.size, p.size);
  }
}

// The state [key][value] in front of a segment.
template <typename T, typename Params> void read_state(const Params& p, const HeadPlace& place,
                                                       const Segment& segment, int64_t stride,
                                                       T* state) {
  if (segment.starts_document) return clear_rows(state, stride * stride);
  const int64_t index = place.task * p.kept + segment.begin / p.checkpoint_interval;
  const T* kept = static_cast<const T*>(p.checkpoints) + index * p.size * p.size;
  copy_matrix(kept, p.size, state, stride, p.size);
}

// gradients: one of stride x stride for every head of the group, [value][key], with padding already
// zero. run_segment(place, n, gradient, segment, next), for every head n of the group and from the
// last segment to the first, turns the gradient of the state behind the segment into that before
// it; `next` are the tokens of the following call.
template <typename T, typename Params, typename RunSegment>
void walk_heads_backward(const Params& p, const HeadGroup& group, int64_t stride, T* gradients,
                         RunSegment run_segment) {
  const int64_t square = p.size * p.size, padded_square = stride * stride;
  const int64_t first_task = group.row * p.heads + group.first;
  clear_rows(gradients, group.count * padded_square);
  for (int64_t n = 0; n < group.count && p.gfinal_state != nullptr; ++n) {
    const T* given = static_cast<const T*>(p.gfinal_state) + (first_task + n) * square;
    copy_matrix(given, p.size, gradients + n * padded_square, stride, p.size);
  }
  const bool* reset = p.reset == nullptr ? nullptr : p.reset + group.row * p.time;
  const auto segments = cut_sequence(reset, p.time, p.checkpoint_interval);
  for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
    for (int64_t n = 0; n < group.count; ++n) {
      const bool turn_ends = n + 1 == group.count;
      const auto after = turn_ends ? std::next(segment) : segment;
      const HeadPlace next_place(p, first_task + (turn_ends ? 0 : n + 1));
      const HeadTokens next = after == segments.rend()
                                  ? HeadTokens{next_place, 0, 0}
                                  : HeadTokens{next_place, after->begin, after->tokens};
      T* const gradient = gradients + n * padded_square;
      run_segment(HeadPlace(p, first_task + n), n, gradient, *segment, next);
      // What came before the document does not act on it.
      if (segment->starts_document) clear_rows(gradient, padded_square);
    }
  }
  for (int64_t n = 0; n < group.count && p.with_gstate; ++n) {
    T* left = static_cast<T*>(p.gstate) + (first_task + n) * square;
    copy_matrix(gradients + n * padded_square, stride, left, p.size, p.size);
  }
}

// Runs heads.run(task) for tasks [begin, end), groups of at most `most` heads, with Heads<double>
// or Heads<float>.
template <template <typename> typename Heads, typename Params>
void run_heads(const Params& p, int64_t most, int64_t begin, int64_t end) {
  const auto run = [&](auto heads) {
    for (int64_t task = begin; task < end; ++task) heads.run(task);
  };
  if (p.dtype == DType::kDouble) run(Heads<double>(p, most));
  else run(Heads<float>(p, most));
}

}  // namespace rwkv
