// What the two passes of the token shift share: which tokens and channels a thread has, and its
// walk over them with x' - x in registers.
//
// A block has kShiftTokens tokens of one batch row and as many channels as its lanes own; each of
// its warps walks over kShiftWarpTokens of the tokens, some rows a step. Within a step results come
// one after the other, so that their number costs no registers; what the next one needs is fetched
// by cp.async while this one is computed.
#pragma once

#include "token_shift_cuda.h"
#include "token_shift_rows.cuh"

namespace rwkv {

// Rows of one step. A warp's tokens and the one behind them, which the backward pass needs, are 17.
constexpr int kShiftRows = 3;
constexpr int kShiftWarps = kShiftThreads / kWarp;
static_assert(kShiftWarps * kShiftWarpTokens == kShiftTokens);

// One thread's channels, and the tokens of its warp, numbered from 0 on.
template <int kChannels> struct ShiftPlace {
  static constexpr int64_t kBlockChannels = kWarp * kChannels;

  int64_t task, row, channel, begin;  // begin: token 0 of the warp in the sequence
  int64_t first, whole;  // where token 0 lies in a tensor [B, T, C]; the size of one
  int tokens, width;  // 64 bits for the width would cost registers that there are not

  __device__ explicit ShiftPlace(const TokenShiftSizes& p) {
    const int64_t groups = ceil_div(p.width, kBlockChannels);
    const int64_t tasks = ceil_div(p.time, kShiftTokens);
    task = blockIdx.x / groups;
    row = task / tasks;
    channel = blockIdx.x % groups * kBlockChannels + lane_number() * kChannels;
    begin = task % tasks * kShiftTokens + warp_number() * kShiftWarpTokens;
    const int64_t left = p.time - begin;
    tokens = static_cast<int>(left < kShiftWarpTokens ? left : kShiftWarpTokens);
    width = static_cast<int>(p.width);
    first = (row * p.time + begin) * p.width + channel;
    whole = p.batch * p.time * p.width;
  }

  __device__ bool has_channels() const { return channel < width; }
  __device__ bool is_empty() const { return tokens <= 0 || !has_channels(); }
  // Where the channels of token n lie in a tensor [B, T, C], and in the i-th of several.
  __device__ int64_t at(int n, int i = 0) const {
    return first + i * whole + static_cast<int64_t>(n) * width;
  }
  __device__ int64_t row_start() const { return row * width + channel; }
};

// Every token of x is read once: the last row of one step comes before the first of the next.
template <int kChannels, bool kMoves, class Params> struct ShiftWalk {
  static constexpr int kRows = kShiftRows;
  using Row = Channels<kChannels>;

  const Params& p;
  const ShiftPlace<kChannels>& place;
  const int stop;
  const RowBuffer<Row> &fetched_x, &fetched_moves;
  Row before, x[kRows], delta[kRows], mix, next_mix;
  unsigned starts;  // bit k: row k starts a document

  // stop: the token at which the walk ends; of tokens that are not the place's x is not fetched.
  // x, moves: room for one step and for two results of a step.
  __device__ ShiftWalk(const Params& p, const ShiftPlace<kChannels>& place, int stop,
                       const RowBuffer<Row>& x, const RowBuffer<Row>& moves)
      : p(p), place(place), stop(stop), fetched_x(x), fetched_moves(moves), before{} {
    if (place.begin > 0) before = load_row<Row>(p.x, place.at(-1), p.dtype);
    else if (p.last != nullptr) before = load_row<Row>(p.last, place.row_start(), p.dtype);
  }

  // Per step from token n on and result i: visit(i, n, slot). fetch(i, n, slot) fetches what it
  // needs besides x and the shares. finish(n): after the last result of the step.
  template <typename Fetch, typename Visit, typename Finish>
  __device__ __forceinline__ void run(Fetch fetch, Visit visit, Finish finish) {
    const int count = static_cast<int>(p.count);
    const auto fetch_all = [&](int i, int n, int slot) {
      next_mix = load_row<Row>(p.mixes, static_cast<int64_t>(i) * place.width + place.channel,
                               DType::kFloat);
      if (i == 0) fetch_rows(fetched_x, 0, p.x, place.at(n), place.tokens - n);
      if constexpr (kMoves) {
        fetch_rows(fetched_moves, slot * kRows, p.moves, place.at(n, i), stop - n);
      }
      fetch(i, n, slot);
      commit_copies();
    };
    fetch_all(0, 0, 0);
    int slot = 0;
#pragma unroll 1
    for (int n = 0; n < stop; n += kRows) {
#pragma unroll 1
      for (int i = 0; i < count; ++i, slot ^= 1) {
        wait_for_copies();
        mix = next_mix;
        if (i == 0) start_step(n);
        if (i + 1 < count) fetch_all(i + 1, n, slot ^ 1);
        else if (n + kRows < stop) fetch_all(0, n + kRows, slot ^ 1);
        visit(i, n, slot);
      }
      finish(n);
    }
  }

  // The first `count` rows of a step, if it has so many.
  __device__ __forceinline__ void fetch_rows(const RowBuffer<Row>& to, int row, const void* from,
                                             int64_t index, int count) const {
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (k < count) to.fetch(row + k, from, index + static_cast<int64_t>(k) * place.width);
    }
  }

  // mixes_i + moves_i in row k of the result that is visited.
  __device__ __forceinline__ Row share(int k, int slot) const {
    if constexpr (!kMoves) return mix;
    Row share = fetched_moves.load(slot * kRows + k);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) share.at[c] += mix.at[c];
    return share;
  }

 private:
  // x and x' - x of the tokens from n on, and which of them start a document.
  __device__ __forceinline__ void start_step(int n) {
    starts = 0;
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const bool* const reset = p.reset + place.row * p.time + place.begin + n + k;
      if (p.reset != nullptr && n + k < stop && *reset) starts |= 1u << k;
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      if (n + k >= place.tokens) break;
      x[k] = fetched_x.load(k);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        delta[k].at[c] = ((starts >> k & 1) != 0 ? 0.0f : before.at[c]) - x[k].at[c];
      }
      before = x[k];
    }
  }
};

}  // namespace rwkv
