// CPU kernel of WKV-4's pieces. A lane is a channel, a task kWkv4Channels channels of a batch row.
//
// It goes from the last token to the first, where a token has the exponent k plus the decay's step
// times the tokens behind it: a product, which no rounding of a running exponent spoils. The sums
// of a few tokens are taken by themselves, relative to the largest exponent so far, so that there
// is one exponential a token.
#include "wkv4_piece.h"

#include <algorithm>

#include "../common/cpu/piece_tokens.h"
#include "../wkv4/wkv4_cpu_channels.h"

namespace rwkv {
namespace {

template <typename T> class PieceChannels {
 public:
  explicit PieceChannels(const Wkv4Piece& p) : p_(p), now_(scratch_) {
    for (T** rows : {&k_, &v_}) scratch_.want(*rows, kWkv4Tokens * kStride);
    for (T** row : {&aa_, &bb_}) scratch_.want(*row, kStride);
    scratch_.allocate();
  }

  void run(int64_t task) {
    const ChannelGroup at(p_, task);
    now_.read_step(p_.w, at);
    now_.clear();
    const PieceTokens tokens = piece_tokens(at.reset(p_.reset), p_.time, false);
    for (int64_t end = tokens.end, count; end > tokens.begin; end -= count) {
      count = std::min(kWkv4Tokens, end - tokens.begin);
      read_tokens(p_.k, p_.dtype, at, end - count, count, k_);
      read_tokens(p_.v, p_.dtype, at, end - count, count, v_);
      for (int64_t i = 0; i < kStride; i += kLanes<T>) add_tokens(i, count, tokens.end - end);
    }
    now_.fold();
    round_sums(now_.aa, now_.pp, kStride, aa_);
    round_sums(now_.bb, now_.pp, kStride, bb_);
    const T* const parts[3] = {aa_, bb_, now_.pp.high};
    for (int n = 0; n < 3; ++n) {
      store_row<T>(p_.sums, kDTypeOf<T>, at.state(n), at.count, parts[n]);
    }
  }

 private:
  // after: tokens behind the last of these
  void add_tokens(int64_t i, int64_t count, int64_t after) const {
    const Vec<T> step = load<T>(now_.step + i);
    const Vec<T> before = now_.pp.load(i).high;
    Vec<T> largest = before;
    for (int64_t n = 0; n < count; ++n) {
      T* const k = k_ + n * kStride + i;
      const Vec<T> exponent = load<T>(k) + step * static_cast<T>(after + count - 1 - n);
      store<T>(k, exponent);
      largest = exponent > largest ? exponent : largest;
    }
    Vec<T> a{}, b{};
    for (int64_t n = 0; n < count; ++n) {
      const Vec<T> weight = weight_of(load<T>(k_ + n * kStride + i) - largest);
      a += weight * load<T>(v_ + n * kStride + i);
      b += weight;
    }
    const Vec<T> kept = weight_of(before - largest);
    now_.aa.store(i, now_.aa.load(i).times(kept).plus(a));
    now_.bb.store(i, now_.bb.load(i).times(kept).plus(b));
    now_.pp.store(i, {largest, Vec<T>{}});
  }

  RWKV_INLINE static Vec<T> weight_of(Vec<T> exponent) {
    return exp_in_range<T>(max<T>(ExpConstants<T>::kSmallest, exponent));
  }

  const Wkv4Piece& p_;
  Scratch<T> scratch_;
  ChannelState<T> now_;
  T *k_, *v_, *aa_, *bb_;
};

}  // namespace

void wkv4_piece_cpu(const Wkv4Piece& params, int64_t begin, int64_t end) {
  const auto run = [&](auto channels) {
    for (int64_t task = begin; task < end; ++task) channels.run(task);
  };
  if (params.dtype == DType::kDouble) run(PieceChannels<double>(params));
  else run(PieceChannels<float>(params));
}

}  // namespace rwkv
