// CPU kernel of WKV-7's pieces: the operator's own tiles, without its output.
//
// The rows of a state never meet one another, and with v = 0 a token only multiplies them. So the
// transition is what the tiles make of the identity without values, and the contribution what they
// make of nothing. Backwards the gradient G of the state obeys the same recurrence in reversed
// time,
//
//   G_{t-1} = G_t diag(d_t) + (G_t b_t) a_t^T + gy_{t-1} r_{t-1}^T          G_T = gy_T r_T^T
//
// with a and b exchanged, and with r and gy in the places of k and v one token late, since y reads
// the state after its token.
#include "wkv7_piece.h"

#include <algorithm>

#include "../common/cpu/head_rows.h"
#include "../common/cpu/head_walk.h"
#include "../common/cpu/piece_tokens.h"
#include "../common/cpu/row_math.h"
#include "../common/cpu/scratch.h"
#include "../wkv7/wkv7_cpu_decay.h"
#include "../wkv7/wkv7_cpu_tiles.h"

namespace rwkv {
namespace {

template <typename T> class PieceHeads {
 public:
  explicit PieceHeads(const Wkv7Piece& p) : p_(p), stride_(padded<T>(p.size)) {
    for (T** rows : {&keys_, &values_, &a_, &b_, &w_, &d_, &slope_, &u_}) {
      scratch_.want(*rows, kBlock * stride_);
    }
    scratch_.want(base_, stride_);
    for (T** square : {&state_, &transition_, &transposed_}) {
      scratch_.want(*square, stride_ * stride_);
    }
    scratch_.allocate();
  }

  void run(int64_t task) {
    const HeadPlace place(p_, task);
    const bool* reset = p_.reset == nullptr ? nullptr : p_.reset + place.row * p_.time;
    const PieceTokens tokens = piece_tokens(reset, p_.time, p_.backwards);
    if (p_.base != nullptr) {
      load_row<T>(p_.base, kDTypeOf<T>, place.head * p_.size, p_.size, base_);
    }
    for (T* square : {state_, transition_}) clear_rows(square, stride_ * stride_);
    if (p_.backwards) start_gradient(place, tokens);
    for (int64_t i = 0; i < p_.size; ++i) transition_[i * stride_ + i] = 1;
    for (int64_t done = 0, count; done < tokens.end - tokens.begin; done += count) {
      count = std::min(kBlock, tokens.end - tokens.begin - done);
      if (p_.backwards) read_backwards(place, tokens, tokens.end - 1 - done, count);
      else read_forwards(place, tokens.begin + done, count);
      const DeltaBlock<T> block = rows(count);
      delta_forward<T, false>(block, state_);
      if (!p_.backwards) delta_forward<T, false, false>(block, transition_);
    }
    write(task, state_, p_.matrix);
    if (!p_.backwards) write(task, transition_, p_.transition);
  }

 private:
  DeltaBlock<T> rows(int64_t tokens) const {
    DeltaBlock<T> block{};
    block.tokens = tokens, block.stride = stride_;
    block.k = keys_, block.v = values_, block.a = a_, block.b = b_, block.d = d_, block.u = u_;
    return block;
  }

  void read_forwards(const HeadPlace& place, int64_t begin, int64_t count) const {
    read_rows(p_.keys, p_.dtype, place, begin, count, keys_, stride_);
    read_rows(p_.values, p_.dtype, place, begin, count, values_, stride_);
    read_rows(p_.a, p_.dtype, place, begin, count, a_, stride_);
    read_rows(p_.b, p_.dtype, place, begin, count, b_, stride_);
    read_rows(p_.w, p_.w_dtype, place, begin, count, w_, stride_);
    for (int64_t n = 0; n < count; ++n) read_decay(n, begin + n);
  }

  // Tokens last, last - 1, ...
  void read_backwards(const HeadPlace& place, const PieceTokens& tokens, int64_t last,
                      int64_t count) const {
    for (int64_t n = 0; n < count; ++n) {
      const int64_t t = last - n, at = n * stride_;
      read_rows(p_.a, p_.dtype, place, t, 1, b_ + at, stride_);
      read_rows(p_.b, p_.dtype, place, t, 1, a_ + at, stride_);
      read_rows(p_.w, p_.w_dtype, place, t, 1, w_ + at, stride_);
      read_decay(n, t);
      if (t == tokens.begin) {
        for (T* row : {keys_ + at, values_ + at}) clear_rows(row, stride_);
      } else {
        read_rows(p_.keys, p_.dtype, place, t - 1, 1, keys_ + at, stride_);
        read_rows(p_.values, p_.dtype, place, t - 1, 1, values_ + at, stride_);
      }
    }
  }

  void read_decay(int64_t n, int64_t t) const {
    decay_of(w_ + n * stride_, base_, d_ + n * stride_, slope_, stride_, t);
  }

  // [key][value], as the tiles have a state
  void start_gradient(const HeadPlace& place, const PieceTokens& tokens) const {
    if (tokens.end == tokens.begin) return;
    read_rows(p_.keys, p_.dtype, place, tokens.end - 1, 1, keys_, stride_);
    read_rows(p_.values, p_.dtype, place, tokens.end - 1, 1, values_, stride_);
    for (int64_t i = 0; i < p_.size; ++i) {
      set_scaled(state_ + i * stride_, keys_[i], values_, stride_);
    }
  }

  void write(int64_t task, const T* from, void* to) const {
    transpose(from, transposed_, stride_, stride_);
    T* const matrix = static_cast<T*>(to) + task * p_.size * p_.size;
    copy_matrix(transposed_, stride_, matrix, p_.size, p_.size);
  }

  const Wkv7Piece& p_;
  const int64_t stride_;
  Scratch<T> scratch_;
  T *keys_, *values_, *a_, *b_, *w_, *d_, *slope_, *u_, *base_;
  T *state_, *transition_, *transposed_;
};

}  // namespace

void wkv7_piece_cpu(const Wkv7Piece& params, int64_t begin, int64_t end) {
  const auto run = [&](auto heads) {
    for (int64_t task = begin; task < end; ++task) heads.run(task);
  };
  if (params.dtype == DType::kDouble) run(PieceHeads<double>(params));
  else run(PieceHeads<float>(params));
}

}  // namespace rwkv
