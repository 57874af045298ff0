// CPU kernels of RWKV-7's keys. With z = logits + base, p = key removal, n = |p| per head and
// u = p / max(n, 1e-12):
//
//   k = key (1 - s(-z) replacement)      a = -u      b = u s(z)
//
//   gu = s(z) gb - ga      gp = (gu - [n >= 1e-12] u (u . gu)) / max(n, 1e-12)
//   gkey = gk (1 - s(-z) replacement) + gp removal
//   gz = (u gb + key replacement gk) s'(z)
//   gbase = sum of gz    gremoval = sum of gp key    greplacement = -sum of gk key s(-z)
//
// A task is a block of tokens of some heads. Lanes are channels; heads are padded to whole vectors
// in working memory, not in the tensors.
#include "keys.h"

#include <cmath>

#include "../common/cpu/scratch.h"
#include "../common/cpu/sigmoid.h"
#include "../common/cpu/token_block.h"
#include "../common/cpu/typed_vectors.h"

namespace rwkv {
namespace {

// Most channels of a task with more than one head: parameters, sums and rows of as many stay in the
// first-level cache.
constexpr int64_t kKeysChannels = 1024;

int64_t heads_of_task(const KeysSizes& p) {
  return std::clamp<int64_t>(kKeysChannels / p.size, 1, p.heads);
}

int64_t groups_of_heads(const KeysSizes& p) {
  const int64_t most = heads_of_task(p);
  return (p.heads + most - 1) / most;
}

// What a task has of the parameters, in rows of a whole number of vectors per head; and the walk
// over its tokens and heads.
template <typename T> struct KeysTask {
  const KeysSizes& p;
  const TokenBlock tokens;
  const int64_t block, first, heads;
  const int64_t stride;
  T *base, *removal, *replacement;
  Scratch<T> scratch;

  KeysTask(const KeysSizes& p, int64_t task)
      : p(p), tokens(p.time, task / groups_of_heads(p)), block(task / groups_of_heads(p)),
        first(task % groups_of_heads(p) * heads_of_task(p)),
        heads(std::min(heads_of_task(p), p.heads - first)),
        stride((p.size + kLanes<T> - 1) / kLanes<T> * kLanes<T>) {
    for (T** row : {&base, &removal, &replacement}) scratch.want(*row, heads * stride);
  }

  template <typename Params> void load_parameters(const Params& params) {
    const auto copy = [&](const void* from, T* to) {
      for (int64_t h = 0; h < heads; ++h) {
        std::copy_n(static_cast<const T*>(from) + (first + h) * p.size, p.size, to + h * stride);
      }
    };
    copy(params.base, base), copy(params.removal, removal);
    copy(params.replacement, replacement);
  }

  // visit(where the head's row starts in a tensor [B, T, H, N], where in a row of working memory)
  template <typename Visit> RWKV_INLINE void each_row(Visit visit) const {
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      for (int64_t h = 0; h < heads; ++h) visit((t * p.heads + first + h) * p.size, h * stride);
    }
  }
};

// A head's own length, and what its keys are multiplied with.
template <typename T> struct KeyLength {
  T length, inverse;

  RWKV_INLINE explicit KeyLength(Vec<T> squares) {
    length = std::sqrt(sum_lanes<T, 1>(&squares)[0]);
    inverse = T(1) / (length < T(kShortestKey) ? T(kShortestKey) : length);
  }
  RWKV_INLINE bool is_normal() const { return length >= T(kShortestKey); }
};

template <typename E> void forward_task(const KeysForward& p, int64_t number) {
  using T = Computing<E>;
  constexpr int L = kLanes<T>;
  KeysTask<T> task(p, number);
  task.scratch.allocate();
  task.load_parameters(p);
  const auto *key = static_cast<const E*>(p.key), *logits = static_cast<const E*>(p.logits);
  auto *k = static_cast<E*>(p.k), *a = static_cast<E*>(p.a), *b = static_cast<E*>(p.b);
  task.each_row([&](int64_t at, int64_t row) {
    Vec<T> squares{};
    for (int64_t i = 0; i < p.size; i += L) {
      const Vec<T> x = load_part(key + at + i, p.size - i) * load<T>(task.removal + row + i);
      squares += x * x;
    }
    const KeyLength<T> length(squares);
    for (int64_t i = 0; i < p.size; i += L) {
      const int64_t left = p.size - i;
      const Vec<T> x = load_part(key + at + i, left);
      const Sigmoid<T> rate(load_part(logits + at + i, left) + load<T>(task.base + row + i));
      const Vec<T> unit = x * load<T>(task.removal + row + i) * length.inverse;
      const Vec<T> share = rate.of_minus_z * load<T>(task.replacement + row + i);
      store_part(k + at + i, left, x * (T(1) - share));
      store_part(a + at + i, left, -unit);
      store_part(b + at + i, left, unit * rate.of_z);
    }
  });
}

// One task of the backward pass.
template <typename E> struct KeysBackwardTask {
  using T = Computing<E>;
  static constexpr int L = kLanes<T>;

  const KeysBackward& p;
  KeysTask<T> task;
  const E *gk, *ga, *gb, *key, *logits;
  E *gkey, *glogits;
  // of one head: gu, s(z), s(-z)
  T *gunit, *rate, *rest;
  T *gbase, *gremoval, *greplacement;

  KeysBackwardTask(const KeysBackward& p, int64_t number)
      : p(p), task(p, number), gk(typed(p.gk)), ga(typed(p.ga)), gb(typed(p.gb)),
        key(typed(p.key)), logits(typed(p.logits)), gkey(static_cast<E*>(p.gkey)),
        glogits(static_cast<E*>(p.glogits)) {
    for (T** row : {&gunit, &rate, &rest}) task.scratch.want(*row, task.stride);
    for (T** row : {&gbase, &gremoval, &greplacement}) {
      task.scratch.want(*row, task.heads * task.stride);
    }
    task.scratch.allocate();
    task.load_parameters(p);
  }

  void run() {
    task.each_row([&](int64_t at, int64_t row) { add_row(at, row); });
    T* const to = static_cast<T*>(p.sums) + task.block * kKeysVectors * p.heads * p.size;
    const T* const sums[] = {gbase, gremoval, greplacement};
    for (int64_t i = 0; i < kKeysVectors; ++i) {
      for (int64_t h = 0; h < task.heads; ++h) {
        std::copy_n(sums[i] + h * task.stride, p.size,
                    to + (i * p.heads + task.first + h) * p.size);
      }
    }
  }

 private:
  static const E* typed(const void* tensor) { return static_cast<const E*>(tensor); }

  static RWKV_INLINE Vec<T> load_or_zero(const E* from, int64_t at, int64_t left) {
    return from == nullptr ? Vec<T>{} : load_part(from + at, left);
  }

  RWKV_INLINE void add_row(int64_t at, int64_t row) {
    Vec<T> squares{}, products{};
    for (int64_t i = 0; i < p.size; i += L) {
      const int64_t left = p.size - i;
      const Sigmoid<T> s(load_part(logits + at + i, left) + load<T>(task.base + row + i));
      const Vec<T> x = load_part(key + at + i, left) * load<T>(task.removal + row + i);
      const Vec<T> gu = s.of_z * load_or_zero(gb, at + i, left) - load_or_zero(ga, at + i, left);
      squares += x * x;
      products += x * gu;
      store<T>(gunit + i, gu), store<T>(rate + i, s.of_z), store<T>(rest + i, s.of_minus_z);
    }
    const KeyLength<T> length(squares);
    const T dot = length.is_normal() ? sum_lanes<T, 1>(&products)[0] * length.inverse : T(0);
    for (int64_t i = 0; i < p.size; i += L) store_gradients(at, row, i, length.inverse, dot);
  }

  RWKV_INLINE void store_gradients(int64_t at, int64_t row, int64_t i, T inverse, T dot) {
    const int64_t left = p.size - i;
    const Vec<T> x = load_part(key + at + i, left), removal = load<T>(task.removal + row + i);
    const Vec<T> replacement = load<T>(task.replacement + row + i), off = load<T>(rest + i);
    const Vec<T> unit = x * removal * inverse, gx = load_or_zero(gk, at + i, left);
    const Vec<T> gp = (load<T>(gunit + i) - unit * dot) * inverse, slope = load<T>(rate + i) * off;
    const Vec<T> through = unit * load_or_zero(gb, at + i, left) + x * replacement * gx;
    const Vec<T> gz = through * slope;
    store_part(gkey + at + i, left, gx * (T(1) - off * replacement) + gp * removal);
    store_part(glogits + at + i, left, gz);
    add_to(gbase + row + i, gz);
    add_to(gremoval + row + i, gp * x);
    add_to(greplacement + row + i, -(gx * x * off));
  }

  static RWKV_INLINE void add_to(T* sum, Vec<T> x) { store<T>(sum, load<T>(sum) + x); }
};

}  // namespace

int64_t keys_tasks(const KeysSizes& p) {
  return p.batch * sum_blocks_of_row(p.time) * groups_of_heads(p);
}

void keys_forward_cpu(const KeysForward& p, int64_t begin, int64_t end) {
  with_element_type(p.dtype, [&]<typename E>() {
    for (int64_t task = begin; task < end; ++task) forward_task<E>(p, task);
  });
}

void keys_backward_cpu(const KeysBackward& p, int64_t begin, int64_t end) {
  with_element_type(p.dtype, [&]<typename E>() {
    for (int64_t task = begin; task < end; ++task) KeysBackwardTask<E>(p, task).run();
  });
}

}  // namespace rwkv
