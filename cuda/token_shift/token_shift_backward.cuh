// Backward pass of the token shift. With delta = x' - x and the share m_i = mixes_i + moves_i:
//
//   gdelta = sum_i gy_i m_i      gx = sum_i gy_i - gdelta + (gdelta of the next token)
//   gmoves_i = gy_i delta        gmixes_i = its sum over all tokens
//
// A document start has x' = 0 and passes no gdelta back.
#pragma once

#include "token_shift_walk.cuh"

namespace rwkv {

template <class Row> struct ShiftBackwardShared {
  float* sums;  // what gmixes is made of: [n][warp][lane] channels
  RowBuffer<Row> x, gy, moves;

  __host__ __device__ ShiftBackwardShared(Pieces& pieces, const TokenShiftBackward& p)
      : sums(pieces.floats(static_cast<int>(p.count) * kShiftThreads * kChannelsOf<Row>)),
        x(pieces, kShiftRows, p.dtype), gy(pieces, 2 * kShiftRows, p.y_dtype),
        moves(pieces, p.moves == nullptr ? 0 : 2 * kShiftRows, p.moves_dtype) {}

  __device__ Row load_sum(int i, int warp) const {
    return load_row<Row>(sums, sum_at(i, warp), DType::kFloat);
  }
  __device__ void store_sum(int i, const Row& x) const {
    float* const to = sums + sum_at(i, warp_number());
    if constexpr (kChannelsOf<Row> == kVec8) store_floats(to, x);
    else *to = x.at[0];
  }

 private:
  __device__ static int sum_at(int i, int warp) {
    return ((i * kShiftWarps + warp) * kWarp + lane_number()) * kChannelsOf<Row>;
  }
};

// One thread's walk over its tokens and the one behind them.
template <int kChannels, bool kMoves> struct ShiftBackwardThread {
  static constexpr int kRows = kShiftRows;
  using Row = Channels<kChannels>;

  const TokenShiftBackward& p;
  const ShiftPlace<kChannels>& place;
  const ShiftBackwardShared<Row>& shared;
  const bool ends_sequence;
  ShiftWalk<kChannels, kMoves, TokenShiftBackward> walk;
  // Of the tokens n - 1 .. n + kRows - 1. The first lacks what token n passes back, the last what
  // the first of the next step does.
  Row gx[kRows + 1] = {};

  __device__ ShiftBackwardThread(const TokenShiftBackward& p, const ShiftPlace<kChannels>& place,
                                 const ShiftBackwardShared<Row>& shared)
      : p(p), place(place), shared(shared), ends_sequence(place.begin + place.tokens == p.time),
        walk(p, place, place.tokens + (ends_sequence ? 0 : 1), shared.x, shared.moves) {}

  __device__ __forceinline__ void run() {
    const auto fetch = [&](int i, int n, int slot) {
      walk.fetch_rows(shared.gy, slot * kRows, p.gy[i], place.at(n), walk.stop - n);
    };
    const auto finish = [&](int n) {
      store(n);
      gx[0] = gx[kRows];
#pragma unroll
      for (int k = 1; k <= kRows; ++k) gx[k] = {};
    };
    walk.run(fetch, [&](int i, int n, int slot) { add(i, n, slot); }, finish);
  }

 private:
  // What result i contributes to the step from token n on.
  __device__ __forceinline__ void add(int i, int n, int slot) {
    Row sum = shared.load_sum(i, warp_number());
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (n + k >= walk.stop) break;
      const Row gy = shared.gy.load(slot * kRows + k), share = walk.share(k, slot);
      const bool passes = (walk.starts >> k & 1) == 0;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float gdelta = gy.at[c] * share.at[c];
        gx[k + 1].at[c] += gy.at[c] - gdelta;
        if (passes) gx[k].at[c] += gdelta;
      }
      if (n + k >= place.tokens) break;
      Row gmoves;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        gmoves.at[c] = gy.at[c] * walk.delta[k].at[c];
        sum.at[c] += gmoves.at[c];
      }
      if constexpr (kMoves) store_row(p.gmoves, place.at(n + k, i), p.moves_dtype, gmoves);
    }
    shared.store_sum(i, sum);
  }

  // The token before the thread's first is another thread's or, before the sequence, `last`. That
  // of the last row waits for the next step, unless nothing comes behind it.
  __device__ __forceinline__ void store(int n) const {
    if (n + place.begin == 0) store_row(p.glast, place.row_start(), p.dtype, gx[0]);
#pragma unroll
    for (int k = 0; k <= kRows; ++k) {
      const int token = n - 1 + k;
      const bool is_complete = k < kRows || (ends_sequence && token + 1 == place.tokens);
      if (token >= 0 && token < place.tokens && is_complete) {
        store_row(p.gx, place.at(token), p.dtype, gx[k]);
      }
    }
  }
};

// What it computes: gx, glast, gmoves and, per block of tokens, the sums that gmixes is made of.
// What a thread owns: 8 channels (1 where the width is no multiple of 8) of 16 tokens.
// What it gave up: x and gy are read twice at every 16th token, so that warps exchange nothing but
// their sums; lanes idle where the width is no multiple of 256 (of 32).
template <int kChannels, bool kMoves>
__global__ void __launch_bounds__(kShiftThreads, 3)
    token_shift_backward_kernel(const __grid_constant__ TokenShiftBackward p) {
  DYNAMIC_SHARED(base);
  using Row = Channels<kChannels>;
  Pieces pieces(base);
  const ShiftBackwardShared<Row> shared(pieces, p);
  const ShiftPlace<kChannels> place(p);
  const int count = static_cast<int>(p.count);
  for (int i = 0; i < count; ++i) shared.store_sum(i, Row{});
  if (!place.is_empty()) ShiftBackwardThread<kChannels, kMoves>(p, place, shared).run();
  __syncthreads();
  if (!place.has_channels()) return;
  for (int i = warp_number(); i < count; i += kShiftWarps) {
    Row total = shared.load_sum(i, 0);
    for (int warp = 1; warp < kShiftWarps; ++warp) {
      const Row more = shared.load_sum(i, warp);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) total.at[c] += more.at[c];
    }
    const int64_t index = (place.task * p.count + i) * p.width + place.channel;
    store_row(p.gmixes, index, DType::kFloat, total);
  }
}

}  // namespace rwkv
