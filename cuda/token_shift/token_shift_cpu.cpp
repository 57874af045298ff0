// CPU kernels of the token shift. With the token before it x', delta = x' - x and the share
// m_i = mixes_i + moves_i of the i-th result:
//
//   y_i = x + delta m_i
//   gdelta = sum_i gy_i m_i      gx = sum_i gy_i - gdelta + (gdelta of the next token)
//   gmoves_i = gy_i delta        gmixes_i = its sum over all tokens
//
// A task is a block of tokens of one batch row; channels are taken in tiles that stay in the
// first-level cache. A document start has x' = 0 and passes no gradient back.
#include "token_shift.h"

#include <algorithm>

#include "../common/cpu/typed_rows.h"

namespace rwkv {
namespace {

constexpr int64_t kTile = 256;

// The tokens [begin, end) of batch row `row`, channels [first, first + count).
struct Block {
  int64_t row, begin, end, first = 0, count = 0;

  Block(const TokenShiftSizes& p, int64_t task) {
    const int64_t blocks = (p.time + kTokenShiftTokens - 1) / kTokenShiftTokens;
    row = task / blocks;
    begin = task % blocks * kTokenShiftTokens;
    end = std::min(begin + kTokenShiftTokens, p.time);
  }

  // Where the channels of token t start in a tensor [B, T, C], and in the i-th of n of them.
  int64_t at(const TokenShiftSizes& p, int64_t t) const {
    return (row * p.time + t) * p.width + first;
  }
  int64_t at(const TokenShiftSizes& p, int64_t i, int64_t t) const {
    return i * p.batch * p.time * p.width + at(p, t);
  }
};

template <typename Params> bool starts_document(const Params& p, const Block& block, int64_t t) {
  return p.reset != nullptr && p.reset[block.row * p.time + t];
}

// to = the token before t, zero where there is none.
template <typename T, typename Params>
void load_previous(const Params& p, const Block& block, int64_t t, T* to) {
  if (starts_document(p, block, t) || (t == 0 && p.last == nullptr)) {
    std::fill_n(to, block.count, T(0));
  } else if (t == 0) {
    load_row(p.last, p.dtype, block.row * p.width + block.first, block.count, to);
  } else {
    load_row(p.x, p.dtype, block.at(p, t - 1), block.count, to);
  }
}

template <typename T> struct Shares {
  T fixed[kMostMixes][kTile], moved[kTile];

  template <typename Params> Shares(const Params& p, const Block& block) {
    for (int64_t i = 0; i < p.count; ++i) {
      load_row(p.mixes, kDTypeOf<T>, i * p.width + block.first, block.count, fixed[i]);
    }
  }

  // The shares m_i of token t; valid until the next call.
  template <typename Params>
  const T* of(const Params& p, const Block& block, int64_t i, int64_t t) {
    if (p.moves == nullptr) return fixed[i];
    load_row(p.moves, p.moves_dtype, block.at(p, i, t), block.count, moved);
    for (int64_t c = 0; c < block.count; ++c) moved[c] += fixed[i][c];
    return moved;
  }
};

template <typename T> void forward_tile(const TokenShiftForward& p, const Block& block) {
  Shares<T> shares(p, block);
  T rows[2][kTile], delta[kTile], y[kTile];
  load_previous(p, block, block.begin, rows[0]);
  for (int64_t t = block.begin; t < block.end; ++t) {
    T* const previous = rows[(t - block.begin) % 2];
    T* const x = rows[(t - block.begin + 1) % 2];
    load_row(p.x, p.dtype, block.at(p, t), block.count, x);
    if (starts_document(p, block, t)) std::fill_n(previous, block.count, T(0));
    for (int64_t c = 0; c < block.count; ++c) delta[c] = previous[c] - x[c];
    for (int64_t i = 0; i < p.count; ++i) {
      const T* const share = shares.of(p, block, i, t);
      for (int64_t c = 0; c < block.count; ++c) y[c] = x[c] + delta[c] * share[c];
      store_row(p.y[i], p.y_dtype, block.at(p, t), block.count, y);
    }
  }
}

// What the token after the block hands back to its last one: its gdelta.
template <typename T>
void load_next(const TokenShiftBackward& p, const Block& block, Shares<T>& shares, T* next) {
  std::fill_n(next, block.count, T(0));
  if (block.end == p.time || starts_document(p, block, block.end)) return;
  T gy[kTile];
  for (int64_t i = 0; i < p.count; ++i) {
    load_row(p.gy[i], p.y_dtype, block.at(p, block.end), block.count, gy);
    const T* const share = shares.of(p, block, i, block.end);
    for (int64_t c = 0; c < block.count; ++c) next[c] += gy[c] * share[c];
  }
}

template <typename T>
void backward_tile(const TokenShiftBackward& p, const Block& block, int64_t task) {
  Shares<T> shares(p, block);
  T next[kTile], x[kTile], delta[kTile], gx[kTile], gdelta[kTile], gy[kTile], product[kTile];
  T sums[kMostMixes][kTile];
  for (int64_t i = 0; i < p.count; ++i) std::fill_n(sums[i], block.count, T(0));
  load_next(p, block, shares, next);
  for (int64_t t = block.end - 1; t >= block.begin; --t) {
    load_row(p.x, p.dtype, block.at(p, t), block.count, x);
    load_previous(p, block, t, delta);
    for (int64_t c = 0; c < block.count; ++c) {
      delta[c] -= x[c];
      gx[c] = next[c], gdelta[c] = T(0);
    }
    for (int64_t i = 0; i < p.count; ++i) {
      load_row(p.gy[i], p.y_dtype, block.at(p, t), block.count, gy);
      const T* const share = shares.of(p, block, i, t);
      for (int64_t c = 0; c < block.count; ++c) {
        gx[c] += gy[c];
        gdelta[c] += gy[c] * share[c];
        product[c] = gy[c] * delta[c];
        sums[i][c] += product[c];
      }
      if (p.gmoves != nullptr) {
        store_row(p.gmoves, p.moves_dtype, block.at(p, i, t), block.count, product);
      }
    }
    for (int64_t c = 0; c < block.count; ++c) gx[c] -= gdelta[c];
    store_row(p.gx, p.dtype, block.at(p, t), block.count, gx);
    std::copy_n(gdelta, block.count, next);
    if (starts_document(p, block, t)) std::fill_n(next, block.count, T(0));
  }
  if (block.begin == 0) {
    store_row(p.glast, p.dtype, block.row * p.width + block.first, block.count, next);
  }
  for (int64_t i = 0; i < p.count; ++i) {
    store_row(p.gmixes, kDTypeOf<T>, (task * p.count + i) * p.width + block.first, block.count,
              sums[i]);
  }
}

// tile(block, task) for all channels of the tasks [begin, end).
template <typename Tile>
void walk_tiles(const TokenShiftSizes& p, int64_t begin, int64_t end, Tile tile) {
  for (int64_t task = begin; task < end; ++task) {
    Block block(p, task);
    for (block.first = 0; block.first < p.width; block.first += kTile) {
      block.count = std::min(kTile, p.width - block.first);
      tile(block, task);
    }
  }
}

}  // namespace

void token_shift_forward_cpu(const TokenShiftForward& p, int64_t begin, int64_t end) {
  walk_tiles(p, begin, end, [&](const Block& block, int64_t) {
    if (p.dtype == DType::kDouble) forward_tile<double>(p, block);
    else forward_tile<float>(p, block);
  });
}

void token_shift_backward_cpu(const TokenShiftBackward& p, int64_t begin, int64_t end) {
  walk_tiles(p, begin, end, [&](const Block& block, int64_t task) {
    if (p.dtype == DType::kDouble) backward_tile<double>(p, block, task);
    else backward_tile<float>(p, block, task);
  });
}

}  // namespace rwkv
