// CPU kernel of RWKV-5's and 6's pieces: one product of matrices a head, over all tokens.
//
// It starts at the end where nothing decays, the last token forwards and the first one backwards,
// and sums up the logarithms of the decays on its way. So a token's key is weighted once, by an
// exponential of at most 1, and the matrix itself never decays.
#include "wkv5_6_piece.h"

#include <algorithm>

#include "../common/cpu/head_rows.h"
#include "../common/cpu/head_walk.h"
#include "../common/cpu/piece_tokens.h"
#include "../common/cpu/row_math.h"
#include "../common/cpu/scratch.h"
#include "../common/cpu/tiles.h"
#include "../wkv5_6/wkv5_6_cpu_decay.h"

namespace rwkv {
namespace {

// Tokens whose products are summed up by themselves.
constexpr int64_t kTokens = 64;

// What it computes: to += values^T keys.
// What a call owns: kRows values x kVectors vectors of keys of `to`, [value][key].
// What it gave up: blocking over tokens beyond the rows that the caller has in its cache.
template <typename T, int kVectors>
void add_products(const T* values, const T* keys, int64_t tokens, int64_t stride, T* to) {
  constexpr int R = kRows<T>, L = kLanes<T>;
  // From zero, so that a sum over all tokens is a sum of sums over few.
  VectorTile<T, R, kVectors> sum{};
  for (int64_t row = 0; row < tokens * stride; row += stride) {
    Vec<T> v[R];
    broadcast_each<T, R>(v, values + row);
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      const Vec<T> k = load<T>(keys + row + c * L);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) sum.at[j][c] += v[j] * k;
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < R; ++j) {
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      T* const at = to + j * stride + c * L;
      store<T>(at, load<T>(at) + sum.at[j][c]);
    }
  }
}

template <typename T> class PieceHeads {
 public:
  explicit PieceHeads(const Wkv5_6Piece& p) : p_(p), stride_(padded<T>(p.size)) {
    for (T** rows : {&keys_, &values_, &w_}) scratch_.want(*rows, kTokens * stride_);
    for (T** row : {&base_, &log_d_, &log_sum_, &lost_}) scratch_.want(*row, stride_);
    scratch_.want(matrix_, stride_ * stride_);
    scratch_.allocate();
  }

  void run(int64_t task) {
    const HeadPlace place(p_, task);
    const bool* reset = p_.reset == nullptr ? nullptr : p_.reset + place.row * p_.time;
    const PieceTokens tokens = piece_tokens(reset, p_.time, p_.backwards);
    for (T* row : {log_sum_, lost_}) clear_rows(row, stride_);
    clear_rows(matrix_, stride_ * stride_);
    read_parameters(place);
    for (int64_t done = 0, count; done < tokens.end - tokens.begin; done += count) {
      count = std::min(kTokens, tokens.end - tokens.begin - done);
      const int64_t begin = p_.backwards ? tokens.begin + done : tokens.end - done - count;
      run_tokens(place, begin, count, done);
    }
    for (int64_t i = 0; i < stride_; i += kLanes<T>) {
      store<T>(log_sum_ + i, weight(load<T>(log_sum_ + i) + load<T>(lost_ + i)));
    }
    store_row<T>(p_.decay, kDTypeOf<T>, task * p_.size, p_.size, log_sum_);
    T* const matrix = static_cast<T*>(p_.matrix) + task * p_.size * p_.size;
    copy_matrix(matrix_, stride_, matrix, p_.size, p_.size);
  }

 private:
  RWKV_INLINE static Vec<T> weight(Vec<T> log_sum) {
    return exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, log_sum));
  }

  void read_parameters(const HeadPlace& place) const {
    const int64_t at = place.head * p_.size;
    if (p_.base != nullptr) load_row<T>(p_.base, kDTypeOf<T>, at, p_.size, base_);
    if (p_.decay_per_token) return;
    load_row<T>(p_.w, p_.w_dtype, at, p_.size, log_d_);
    for (int64_t i = 0; i < stride_; i += kLanes<T>) {
      store<T>(log_d_ + i, log_decay_of<T>(log_d_ + i));
    }
  }

  // Tokens [begin, begin + count), with `done` tokens between them and where the walk began.
  void run_tokens(const HeadPlace& place, int64_t begin, int64_t count, int64_t done) {
    read_rows(p_.keys, p_.dtype, place, begin, count, keys_, stride_);
    read_rows(p_.values, p_.dtype, place, begin, count, values_, stride_);
    if (p_.decay_per_token) {
      read_rows(p_.w, p_.w_dtype, place, begin, count, w_, stride_);
      weigh_each(count);
    } else {
      weigh_alike(count, done);
    }
    for_each_tile<T>(stride_, [&](auto vectors, int64_t value, int64_t key) {
      add_products<T, vectors.value>(values_ + value, keys_ + key, count, stride_,
                                     matrix_ + value * stride_ + key);
    });
  }

  T* key_row(int64_t count, int64_t n) const {
    return keys_ + (p_.backwards ? n : count - 1 - n) * stride_;
  }

  // A constant decay: the sum of its logarithms over tokens is a product.
  void weigh_alike(int64_t count, int64_t done) const {
    for (int64_t i = 0; i < stride_; i += kLanes<T>) {
      const Vec<T> log_d = load<T>(log_d_ + i);
      for (int64_t n = 0; n < count; ++n) {
        T* const key = key_row(count, n) + i;
        store<T>(key, load<T>(key) * weight(log_d * static_cast<T>(done + n)));
      }
      store<T>(log_sum_ + i, log_d * static_cast<T>(done + count));
    }
  }

  // The logarithms of a few tokens are summed up by themselves and join the sum over all at once,
  // which keeps what rounding cuts off it: over 10^5 tokens it would be visible.
  void weigh_each(int64_t count) const {
    for (int64_t i = 0; i < stride_; i += kLanes<T>) {
      const Vec<T> before = load<T>(log_sum_ + i), lost = load<T>(lost_ + i);
      const Vec<T> base = load<T>(base_ + i);
      Vec<T> here{};
      for (int64_t n = 0; n < count; ++n) {
        T* const key = key_row(count, n) + i;
        store<T>(key, load<T>(key) * weight(before + (lost + here)));
        T* const w = w_ + (key - keys_);
        store<T>(w, load<T>(w) + base);
        here += log_decay_of<T>(w);
      }
      const Vec<T> sum = before + here, part = sum - before;
      store<T>(log_sum_ + i, sum);
      store<T>(lost_ + i, lost + ((before - (sum - part)) + (here - part)));
    }
  }

  const Wkv5_6Piece& p_;
  const int64_t stride_;
  Scratch<T> scratch_;
  T *keys_, *values_, *w_, *base_, *log_d_, *log_sum_, *lost_, *matrix_;
};

}  // namespace

void wkv5_6_piece_cpu(const Wkv5_6Piece& params, int64_t begin, int64_t end) {
  const auto run = [&](auto heads) {
    for (int64_t task = begin; task < end; ++task) heads.run(task);
  };
  if (params.dtype == DType::kDouble) run(PieceHeads<double>(params));
  else run(PieceHeads<float>(params));
}

}  // namespace rwkv
