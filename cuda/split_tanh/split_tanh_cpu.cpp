// CPU kernels of the split tanh: y = tanh(x), gx = gy (1 - y^2). The parts of a token lie side by
// side in x and far apart in y.
#include "split_tanh.h"

#include <algorithm>

#include "../common/cpu/tanh.h"
#include "../common/cpu/typed_vectors.h"

namespace rwkv {
namespace {

// visit(joined, split, count) for every vector of the tokens [begin, end): where it begins in a
// joined and in a split tensor, and how many elements of it there are.
template <typename T, typename Visit>
RWKV_INLINE void walk_parts(const SplitTanhSizes& p, int64_t begin, int64_t end, Visit visit) {
  const int64_t parts = p.parts, rank = p.rank, tokens = p.tokens;
  for (int64_t i = 0; i < parts; ++i) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t joined = (t * parts + i) * rank, split = (i * tokens + t) * rank;
      for (int64_t c = 0; c < rank; c += kLanes<T>) {
        visit(joined + c, split + c, std::min<int64_t>(rank - c, kLanes<T>));
      }
    }
  }
}

// run.template operator()<E>(first, last) with the element type and the tokens of the tasks.
template <typename Run>
void run_tasks(const SplitTanhSizes& p, int64_t begin, int64_t end, Run run) {
  const int64_t first = begin * kSplitTanhTokens;
  const int64_t last = std::min(end * kSplitTanhTokens, p.tokens);
  with_element_type(p.dtype, [&]<typename E>() { run.template operator()<E>(first, last); });
}

}  // namespace

void split_tanh_forward_cpu(const SplitTanhForward& p, int64_t begin, int64_t end) {
  run_tasks(p, begin, end, [&]<typename E>(int64_t first, int64_t last) {
    using T = Computing<E>;
    const E* const x = static_cast<const E*>(p.x);
    E* const y = static_cast<E*>(p.y);
    walk_parts<T>(p, first, last, [=](int64_t joined, int64_t split, int64_t count) {
      store_part(y + split, count, tanh<T>(load_part(x + joined, count)));
    });
  });
}

void split_tanh_backward_cpu(const SplitTanhBackward& p, int64_t begin, int64_t end) {
  run_tasks(p, begin, end, [&]<typename E>(int64_t first, int64_t last) {
    using T = Computing<E>;
    const E *const gy = static_cast<const E*>(p.gy), *const y = static_cast<const E*>(p.y);
    E* const gx = static_cast<E*>(p.gx);
    walk_parts<T>(p, first, last, [=](int64_t joined, int64_t split, int64_t count) {
      const Vec<T> of_x = load_part(y + split, count);
      const Vec<T> slope = T(1) - of_x * of_x;
      store_part(gx + joined, count, load_part(gy + split, count) * slope);
    });
  });
}

}  // namespace rwkv
