// Forward pass of the token shift: y_i = x + (x' - x) (mixes_i + moves_i).
#pragma once

#include "token_shift_walk.cuh"

namespace rwkv {

template <class Row> struct ShiftForwardShared {
  RowBuffer<Row> x, moves;

  __host__ __device__ ShiftForwardShared(Pieces& pieces, const TokenShiftForward& p)
      : x(pieces, kShiftRows, p.dtype),
        moves(pieces, p.moves == nullptr ? 0 : 2 * kShiftRows, p.moves_dtype) {}
};

// What it computes: all n results.
// What a thread owns: 8 channels (1 where the width is no multiple of 8) of 16 tokens.
// What it gave up: x is read twice at every 16th token, lanes idle where the width is no multiple
// of 256 (of 32), and few tokens leave a large card idle: one grid serves every card.
template <int kChannels, bool kMoves>
__global__ void __launch_bounds__(kShiftThreads, 4)
    token_shift_forward_kernel(const __grid_constant__ TokenShiftForward p) {
  DYNAMIC_SHARED(base);
  using Row = Channels<kChannels>;
  const ShiftPlace<kChannels> place(p);
  if (place.is_empty()) return;
  Pieces pieces(base);
  const ShiftForwardShared<Row> shared(pieces, p);
  ShiftWalk<kChannels, kMoves, TokenShiftForward> walk(p, place, place.tokens, shared.x,
                                                       shared.moves);
  const auto visit = [&](int i, int n, int slot) {
#pragma unroll
    for (int k = 0; k < kShiftRows; ++k) {
      if (n + k >= place.tokens) break;
      Row y = walk.share(k, slot);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        y.at[c] = walk.x[k].at[c] + walk.delta[k].at[c] * y.at[c];
      }
      store_row(p.y[i], place.at(n + k), p.y_dtype, y);
    }
  };
  walk.run([](int, int, int) {}, visit, [](int) {});
}

}  // namespace rwkv
