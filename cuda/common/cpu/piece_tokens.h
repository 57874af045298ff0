// Which tokens of a piece tell what it does to the state.
#pragma once

#include <cstdint>

namespace rwkv {

struct PieceTokens {
  int64_t begin, end;
};

// Forwards, of a batch row: those from the last document start on, which write to the final state.
// Backwards: those before the first one, which read the initial state. reset: [time] or null.
inline PieceTokens piece_tokens(const bool* reset, int64_t time, bool backwards) {
  PieceTokens tokens{0, time};
  if (reset == nullptr) return tokens;
  if (backwards) {
    for (tokens.end = 0; tokens.end < time && !reset[tokens.end];) ++tokens.end;
  } else {
    for (tokens.begin = time - 1; tokens.begin > 0 && !reset[tokens.begin];) --tokens.begin;
  }
  return tokens;
}

}  // namespace rwkv
