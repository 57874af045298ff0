// Where a sequence is cut: at every document start and at every multiple of `checkpoint_interval`
// tokens, where the forward pass keeps the state for the backward pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace rwkv {

struct Segment {
  int64_t begin, tokens;
  bool starts_document;  // the state before it is empty, else it is kept number begin /
                         // checkpoint_interval
};

// reset: [time] or null.
inline std::vector<Segment> cut_sequence(const bool* reset, int64_t time,
                                         int64_t checkpoint_interval) {
  std::vector<Segment> segments;
  for (int64_t begin = 0; begin < time;) {
    const int64_t limit = std::min(time, (begin / checkpoint_interval + 1) * checkpoint_interval);
    int64_t end = begin + 1;
    while (end < limit && !(reset != nullptr && reset[end])) ++end;
    segments.push_back({begin, end - begin, reset != nullptr && reset[begin]});
    begin = end;
  }
  return segments;
}

}  // namespace rwkv
