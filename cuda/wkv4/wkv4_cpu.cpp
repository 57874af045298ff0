// CPU kernels of WKV-4. A lane is a channel, a task kWkv4Channels channels of one batch row.
//
// The backward pass computes the states between two kept ones again and then walks from the last
// token to the first with the adjoints of the sums, al = A exp(R) for a and be = B exp(R) for b,
// scaled so that no exponent is above 0.
#include "wkv4.h"

#include <algorithm>

#include "../common/cpu/segments.h"
#include "wkv4_cpu_channels.h"

namespace rwkv {
namespace {

template <typename T> class ForwardChannels {
 public:
  explicit ForwardChannels(const Wkv4Forward& p) : p_(p), now_(scratch_) {
    for (T** rows : {&k_, &v_, &y_}) scratch_.want(*rows, kWkv4Tokens * kStride);
    for (T** row : {&aa_, &bb_}) scratch_.want(*row, kStride);
    scratch_.allocate();
  }

  void run(int64_t task) {
    const ChannelGroup at(p_, task);
    now_.read_parameters(p_.w, p_.u, at);
    now_.clear();
    T* const parts[3] = {now_.aa.high, now_.bb.high, now_.pp.high};
    for (int n = 0; n < 3 && p_.state != nullptr; ++n) {
      load_row<T>(p_.state, kDTypeOf<T>, at.state(n), at.count, parts[n]);
    }
    for (const Segment& segment : cut_sequence(at.reset(p_.reset), p_.time, kWkv4Tokens)) {
      if (segment.starts_document) now_.clear();
      if (p_.checkpoints && segment.begin % p_.checkpoint_interval == 0) {
        const int64_t n = segment.begin / p_.checkpoint_interval;
        write_state(p_.checkpoints, at.count, at.checkpoint(n, 0), p_.width);
      }
      run_tokens(at, segment.begin, segment.tokens);
      now_.fold();
    }
    write_state(p_.final_state, at.count, at.state(0), p_.width);
  }

 private:
  void write_state(void* to, int64_t count, int64_t offset, int64_t stride) const {
    round_sums(now_.aa, now_.pp, kStride, aa_);
    round_sums(now_.bb, now_.pp, kStride, bb_);
    const T* const parts[3] = {aa_, bb_, now_.pp.high};
    for (int n = 0; n < 3; ++n) store_row<T>(to, kDTypeOf<T>, offset + n * stride, count, parts[n]);
  }

  void run_tokens(const ChannelGroup& at, int64_t begin, int64_t tokens) {
    read_tokens(p_.k, p_.dtype, at, begin, tokens, k_);
    read_tokens(p_.v, p_.dtype, at, begin, tokens, v_);
    for (int64_t row = 0; row < tokens * kStride; row += kStride) {
      for (int64_t i = 0; i < kStride; i += kLanes<T>) {
        const Vec<T> k = load<T>(k_ + row + i), v = load<T>(v_ + row + i);
        ChannelSums<T> now(now_, i);
        const Scaled<T> e(now.pp, {load<T>(now_.u + i) + k, Vec<T>{}});
        const Vec<T> denominator = e.first * now.bb.high + e.second;
        store<T>(y_ + row + i, (e.first * now.aa.high + e.second * v) / denominator);
        now.take(load<T>(now_.step + i), k, v);
        now.store_to(now_, i);
      }
    }
    write_tokens(p_.y, p_.dtype, at, begin, tokens, y_);
  }

  const Wkv4Forward& p_;
  Scratch<T> scratch_;
  ChannelState<T> now_;
  T *k_, *v_, *y_, *aa_, *bb_;
};

template <typename T> class BackwardChannels {
 public:
  explicit BackwardChannels(const Wkv4Backward& p)
      : p_(p), longest_(std::min(p.time, p.checkpoint_interval)), now_(scratch_) {
    for (T** rows : {&k_, &v_, &gy_, &gk_, &gv_, &aa_, &bb_, &current_, &y_, &q_}) {
      scratch_.want(*rows, longest_ * kStride);
    }
    for (CompensatedRow<T>* rows : {&pp_, &largest_}) rows->want(scratch_, longest_ * kStride);
    for (CompensatedRow<T>* row : {&A_, &B_, &R_}) row->want(scratch_, kStride);
    for (T** row : {&gu_, &gw_}) scratch_.want(*row, kStride);
    scratch_.allocate();
  }

  void run(int64_t task) {
    const ChannelGroup at(p_, task);
    now_.read_parameters(p_.w, p_.u, at);
    clear_rows(gu_, kStride);
    clear_rows(gw_, kStride);
    clear_adjoint();
    const auto segments = cut_sequence(at.reset(p_.reset), p_.time, p_.checkpoint_interval);
    for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
      replay(at, *segment);
      if (segment == segments.rbegin() && p_.gfinal_state != nullptr) start_adjoint(at);
      reverse(segment->tokens);
      write_tokens(p_.gk, p_.dtype, at, segment->begin, segment->tokens, gk_);
      write_tokens(p_.gv, p_.dtype, at, segment->begin, segment->tokens, gv_);
      // What came before the document does not act on it.
      if (segment->starts_document) clear_adjoint();
    }
    finish(at);
  }

 private:
  void clear_adjoint() {
    A_.fill(0, kStride);
    B_.fill(0, kStride);
    R_.fill(T(kWkv4EmptyExponent), kStride);
  }

  // From the gradients of the final aa and bb; now_.pp is the final pp.
  void start_adjoint(const ChannelGroup& at) {
    load_row<T>(p_.gfinal_state, kDTypeOf<T>, at.state(0), at.count, A_.high);
    load_row<T>(p_.gfinal_state, kDTypeOf<T>, at.state(1), at.count, B_.high);
    for (int64_t i = 0; i < kStride; i += kLanes<T>) {
      R_.store(i, {-now_.pp.load(i).high, Vec<T>{}});
    }
  }

  // Fills for every token: the state before it, what its output was made of, and gy / denominator.
  void replay(const ChannelGroup& at, const Segment& segment) {
    read_tokens(p_.k, p_.dtype, at, segment.begin, segment.tokens, k_);
    read_tokens(p_.v, p_.dtype, at, segment.begin, segment.tokens, v_);
    read_tokens(p_.gy, p_.dtype, at, segment.begin, segment.tokens, gy_);
    now_.clear();
    T* const parts[3] = {now_.aa.high, now_.bb.high, now_.pp.high};
    for (int n = 0; n < 3 && !segment.starts_document; ++n) {
      const int64_t offset = at.checkpoint(segment.begin / p_.checkpoint_interval, n);
      load_row<T>(p_.checkpoints, kDTypeOf<T>, offset, at.count, parts[n]);
    }
    for (int64_t row = 0; row < segment.tokens * kStride; row += kStride) {
      for (int64_t i = 0; i < kStride; i += kLanes<T>) {
        const Vec<T> k = load<T>(k_ + row + i), v = load<T>(v_ + row + i);
        ChannelSums<T> now(now_, i);
        const Scaled<T> e(now.pp, {load<T>(now_.u + i) + k, Vec<T>{}});
        const Vec<T> denominator = e.first * now.bb.high + e.second;
        store<T>(aa_ + row + i, now.aa.high);
        store<T>(bb_ + row + i, now.bb.high);
        pp_.store(row + i, now.pp);
        largest_.store(row + i, e.largest);
        store<T>(current_ + row + i, e.second);
        store<T>(y_ + row + i, (e.first * now.aa.high + e.second * v) / denominator);
        store<T>(q_ + row + i, load<T>(gy_ + row + i) / denominator);
        now.take(load<T>(now_.step + i), k, v);
        now.store_to(now_, i);
      }
    }
    now_.fold();
  }

  void reverse(int64_t tokens) {
    for (int64_t row = (tokens - 1) * kStride; row >= 0; row -= kStride) {
      for (int64_t i = 0; i < kStride; i += kLanes<T>) {
        const int64_t here = row + i;
        const Compensated<T> A = A_.load(i), B = B_.load(i), R = R_.load(i);
        const Vec<T> k = load<T>(k_ + here), v = load<T>(v_ + here), y = load<T>(y_ + here);
        const Vec<T> q = load<T>(q_ + here), own = q * load<T>(current_ + here);
        const Vec<T> later = exp_of_sum<T>({k, Vec<T>{}}, R), by_u = own * (v - y);
        store<T>(gv_ + here, own + later * A.high);
        store<T>(gk_ + here, by_u + later * (A.high * v + B.high));
        store<T>(gu_ + i, load<T>(gu_ + i) + by_u);
        const Compensated<T> decayed = R.plus(load<T>(now_.step + i));
        const Vec<T> kept = exp_of_sum<T>(decayed, pp_.load(here));
        const Vec<T> by_w = kept * (A.high * load<T>(aa_ + here) + B.high * load<T>(bb_ + here));
        store<T>(gw_ + i, load<T>(gw_ + i) + by_w);
        // With a slow decay the two are equal for as long as no larger key comes.
        const Scaled<T> e(decayed, -largest_.load(here));
        A_.store(i, e.move(A, e.second * q));
        B_.store(i, e.move(B, -e.second * (q * y)));
        R_.store(i, e.largest);
      }
    }
    for (const CompensatedRow<T>* row : {&A_, &B_, &R_}) fold_low(*row, kStride);
  }

  // The rows of the first token still hold the state that the sequence began with.
  void finish(const ChannelGroup& at) {
    T *const gaa = gk_, *const gbb = gv_, *const gpp = gy_;
    for (int64_t i = 0; i < kStride; i += kLanes<T>) {
      const Vec<T> scale =
          exp_of_sum<T>(R_.load(i), pp_.load(i));
      const Vec<T> a = A_.load(i).high * scale, b = B_.load(i).high * scale;
      store<T>(gaa + i, a);
      store<T>(gbb + i, b);
      store<T>(gpp + i, load<T>(aa_ + i) * a + load<T>(bb_ + i) * b);
      // the derivative of step by w is step
      store<T>(gw_ + i, load<T>(gw_ + i) * load<T>(now_.step + i));
    }
    const T* const parts[3] = {gaa, gbb, gpp};
    for (int n = 0; n < 3; ++n) {
      store_row<T>(p_.gstate, kDTypeOf<T>, at.state(n), at.count, parts[n]);
    }
    const int64_t offset = at.row * p_.width + at.first;
    store_row<T>(p_.gu, kDTypeOf<T>, offset, at.count, gu_);
    store_row<T>(p_.gw, kDTypeOf<T>, offset, at.count, gw_);
  }

  const Wkv4Backward& p_;
  const int64_t longest_;
  Scratch<T> scratch_;
  ChannelState<T> now_;
  T *k_, *v_, *gy_, *gk_, *gv_, *aa_, *bb_, *current_, *y_, *q_, *gu_, *gw_;
  CompensatedRow<T> pp_, largest_, A_, B_, R_;
};

}  // namespace

void wkv4_forward_cpu(const Wkv4Forward& params, int64_t begin, int64_t end) {
  const auto run = [&](auto channels) {
    for (int64_t task = begin; task < end; ++task) channels.run(task);
  };
  if (params.dtype == DType::kDouble) run(ForwardChannels<double>(params));
  else run(ForwardChannels<float>(params));
}

void wkv4_backward_cpu(const Wkv4Backward& params, int64_t begin, int64_t end) {
  const auto run = [&](auto channels) {
    for (int64_t task = begin; task < end; ++task) channels.run(task);
  };
  if (params.dtype == DType::kDouble) run(BackwardChannels<double>(params));
  else run(BackwardChannels<float>(params));
}

}  // namespace rwkv
