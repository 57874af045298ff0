// Moves that a product makes, low_i up_i, for the tokens at hand: in main memory they would be the
// largest sequences of all, written and read once each way.
#pragma once

#include <algorithm>

#include "norm_shift_cpu_rows.h"

namespace rwkv::norm_shift_rows {

// Tokens whose moves are formed together: enough for a part of `up` to be read several times from
// the first-level cache, few enough for their moves to stay in the second.
constexpr int64_t kMovedTokens = 32;

// What it computes: moves_i = low_i up_i of some tokens.
// What a tile owns: kTokens tokens x up to three vectors of channels, in registers for all ranks.
// What it gave up: element types of 16 bits, whose products have instructions of their own.
template <typename T> class FormedMoves {
 public:
  // Takes working memory that `rows` allocates.
  FormedMoves(const NormShiftInputs& p, TokenRows<T>& rows) : p_(p), stride_(rows.stride) {
    if (!exist()) return;
    rows.scratch.want(moves_, kMovedTokens * p.count * stride_);
    rows.scratch.want(up_, p.count * p.rank * stride_);
  }

  bool exist() const { return p_.up != nullptr; }

  // Once, when memory is there: what a tile reads of `up` then lies in one piece, in whole vectors.
  void read_up() const {
    if (!exist()) return;
    const T* row = static_cast<const T*>(p_.up);
    for (int64_t i = 0; i < p_.count; ++i) {
      for (int64_t r = 0; r < p_.rank; ++r, row += p_.width) {
        for (int64_t c = 0; c < stride_; c += 3 * L) {
          const int64_t columns = std::min(3 * L, stride_ - c);
          std::copy_n(row + c, std::min(columns, p_.width - c), up_of(i, c) + r * columns);
        }
      }
    }
  }

  // For the tokens [first, first + count), at most kMovedTokens.
  void form(int64_t first, int64_t count) {
    first_ = first;
    for (int64_t i = 0; i < p_.count; ++i) {
      int64_t c = 0;
      for (; c + 3 * L <= stride_; c += 3 * L) form_columns<3>(i, c, count);
      if (stride_ - c == 2 * L) form_columns<2>(i, c, count);
      else if (stride_ - c == L) form_columns<1>(i, c, count);
    }
  }

  // moves_0 of a token that is formed; those of the next result begin `stride` elements further on.
  const T* of_token(int64_t token) const {
    return exist() ? moves_ + (token - first_) * p_.count * stride_ : nullptr;
  }

 private:
  static constexpr int64_t L = kLanes<T>;
  // With three vectors each they fill 32 registers of 64 bytes, or 16 smaller ones.
  static constexpr int kTokens = kVectorBytes == 64 ? 8 : 4;
  static_assert(kMovedTokens % kTokens == 0, "whole tiles");

  // The columns [c, c + 3 L) of up_i, or those that are left of them, rank by rank.
  T* up_of(int64_t i, int64_t c) const { return up_ + (i * stride_ + c) * p_.rank; }

  template <int kVectors> void form_columns(int64_t i, int64_t c, int64_t count) const {
    for (int64_t t = 0; t < count; t += kTokens) form_tile<kVectors>(i, c, t, count);
  }

  template <int kVectors>
  void form_tile(int64_t i, int64_t c, int64_t begin, int64_t count) const {
    const int64_t rank = p_.rank, stride = stride_, tokens = p_.batch * p_.time;
    const T* const low = static_cast<const T*>(p_.low) + (i * tokens + first_) * rank;
    const T* const up = up_of(i, c);
    const T* row[kTokens];
    // Behind the last token the tile repeats it; nobody reads those rows.
    for (int n = 0; n < kTokens; ++n) row[n] = low + std::min(begin + n, count - 1) * rank;
    Vec<T> sum[kTokens][kVectors] = {};
    for (int64_t r = 0; r < rank; ++r) {
      Vec<T> u[kVectors];
#pragma GCC unroll 3
      for (int k = 0; k < kVectors; ++k) u[k] = load<T>(up + (r * kVectors + k) * L);
#pragma GCC unroll 8
      for (int n = 0; n < kTokens; ++n) {
        const Vec<T> factor = broadcast<T>(row[n][r]);
#pragma GCC unroll 3
        for (int k = 0; k < kVectors; ++k) sum[n][k] += factor * u[k];
      }
    }
    T* const to = moves_ + (begin * p_.count + i) * stride + c;
#pragma GCC unroll 8
    for (int n = 0; n < kTokens; ++n) {
#pragma GCC unroll 3
      for (int k = 0; k < kVectors; ++k) {
        store<T>(to + n * p_.count * stride + k * L, sum[n][k]);
      }
    }
  }

  const NormShiftInputs& p_;
  const int64_t stride_;
  int64_t first_ = 0;
  T *moves_ = nullptr, *up_ = nullptr;  // [token][n][stride]; [n] of `up_of`
};

}  // namespace rwkv::norm_shift_rows
