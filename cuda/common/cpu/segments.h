// Where a sequence is cut: at every document start and at every multiple of `keep_every` tokens,
// where the forward pass keeps the state for the backward pass.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace rwkv {

struct Segment {
  int64_t begin, tokens;
  bool starts_document;  // the state before it is empty, else it is kept number begin / keep_every
};

// reset: [time] or null.
inline std::vector<Segment> cut_sequence(const bool* reset, int64_t time, int64_t keep_every) {
  std::vector<Segment> segments;
  for (int64_t begin = 0; begin < time;) {
    const int64_t limit = std::min(time, (begin / keep_every + 1) * keep_every);
    int64_t end = begin + 1;
    while (end < limit && !(reset != nullptr && reset[end])) ++end;
    segments.push_back({begin, end - begin, reset != nullptr && reset[begin]});
    begin = end;
  }
  return segments;
}

}  // namespace rwkv
