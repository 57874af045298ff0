// CPU kernels of the value residual. With z = logits + base and the share s(z) of the first value:
//
//   v = value + (first - value) s(z)
//
//   gvalue = gv s(-z)      gfirst = gv s(z) + gcarry      gz = gv (first - value) s'(z)
//   gbase = sum of gz, where gv is the sum of the gradients of both copies of v
//
// A task is a block of tokens of some channels; lanes are channels.
#include "value_residual.h"

#include "../common/cpu/sigmoid.h"
#include "../common/cpu/token_block.h"
#include "../common/cpu/typed_vectors.h"

namespace rwkv {
namespace {

// Channels of a task: their parameters and sums stay in the first-level cache.
constexpr int64_t kResidualChannels = 1024;

int64_t pieces_of_width(const ValueResidualSizes& p) {
  return (p.width + kResidualChannels - 1) / kResidualChannels;
}

struct ResidualTask {
  const TokenBlock tokens;
  const int64_t block, first, count;

  ResidualTask(const ValueResidualSizes& p, int64_t task)
      : tokens(p.time, task / pieces_of_width(p)), block(task / pieces_of_width(p)),
        first(task % pieces_of_width(p) * kResidualChannels),
        count(std::min(kResidualChannels, p.width - first)) {}

  // visit(where a vector starts in a tensor [B, T, D], where in the task's channels, channels left)
  template <int kStep, typename Visit> RWKV_INLINE void each(int64_t width, Visit visit) const {
    for (int64_t t = tokens.begin; t < tokens.end; ++t) {
      for (int64_t i = 0; i < count; i += kStep) visit(t * width + first + i, i, count - i);
    }
  }
};

template <typename E> void residual_forward(const ValueResidualForward& p, int64_t number) {
  using T = Computing<E>;
  const ResidualTask task(p, number);
  const auto *value = static_cast<const E*>(p.value), *first = static_cast<const E*>(p.first);
  const auto* logits = static_cast<const E*>(p.logits);
  const T* const base = static_cast<const T*>(p.base) + task.first;
  E* const v = static_cast<E*>(p.v);
  task.each<kLanes<T>>(p.width, [&](int64_t at, int64_t i, int64_t left) {
    const Sigmoid<T> share(load_part(logits + at, left) + load_part(base + i, left));
    const Vec<T> own = load_part(value + at, left);
    store_part(v + at, left, own + (load_part(first + at, left) - own) * share.of_z);
  });
}

template <typename E> void residual_backward(const ValueResidualBackward& p, int64_t number) {
  using T = Computing<E>;
  const ResidualTask task(p, number);
  const auto *gv = static_cast<const E*>(p.gv), *gagain = static_cast<const E*>(p.gagain);
  const auto* gcarry = static_cast<const E*>(p.gcarry);
  const auto *value = static_cast<const E*>(p.value), *first = static_cast<const E*>(p.first);
  const auto* logits = static_cast<const E*>(p.logits);
  const T* const base = static_cast<const T*>(p.base) + task.first;
  auto *gvalue = static_cast<E*>(p.gvalue), *gfirst = static_cast<E*>(p.gfirst);
  auto* glogits = static_cast<E*>(p.glogits);
  T* const sums = static_cast<T*>(p.sums) + task.block * p.width + task.first;
  std::fill_n(sums, task.count, T(0));
  task.each<kLanes<T>>(p.width, [&](int64_t at, int64_t i, int64_t left) {
    const Sigmoid<T> share(load_part(logits + at, left) + load_part(base + i, left));
    Vec<T> g = load_part(gv + at, left);
    if (gagain != nullptr) g += load_part(gagain + at, left);
    const Vec<T> difference = load_part(first + at, left) - load_part(value + at, left);
    const Vec<T> gz = g * difference * share.slope();
    Vec<T> to_first = g * share.of_z;
    if (gcarry != nullptr) to_first += load_part(gcarry + at, left);
    store_part(gvalue + at, left, g * share.of_minus_z);
    store_part(gfirst + at, left, to_first);
    store_part(glogits + at, left, gz);
    store_part(sums + i, left, load_part(sums + i, left) + gz);
  });
}

}  // namespace

int64_t value_residual_tasks(const ValueResidualSizes& p) {
  return p.batch * sum_blocks_of_row(p.time) * pieces_of_width(p);
}

void value_residual_forward_cpu(const ValueResidualForward& p, int64_t begin, int64_t end) {
  with_element_type(p.dtype, [&]<typename E>() {
    for (int64_t task = begin; task < end; ++task) residual_forward<E>(p, task);
  });
}

void value_residual_backward_cpu(const ValueResidualBackward& p, int64_t begin, int64_t end) {
  with_element_type(p.dtype, [&]<typename E>() {
    for (int64_t task = begin; task < end; ++task) residual_backward<E>(p, task);
  });
}

}  // namespace rwkv
