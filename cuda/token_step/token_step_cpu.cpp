// CPU code of what a block does to one token between its matrix products: some hundred nanoseconds
// a row, where the same as an operator of torch takes microseconds. Nothing of it is shared among
// threads.
#include "token_step.h"

#include <cmath>

#include "../common/cpu/sigmoid.h"
#include "../common/cpu/typed_vectors.h"

namespace rwkv::step {
namespace {

using V = Vec<float>;

// visit(at, count) for every vector of a row; the last may have fewer than all lanes.
template <typename Visit> RWKV_INLINE void each_vector(int64_t n, Visit visit) {
  for (int64_t i = 0; i < n; i += kLanes<float>) visit(i, n - i);
}

// The sum of term(i, count), whose lanes from `count` on must be zero.
template <typename Term> RWKV_INLINE float sum_of(int64_t n, Term term) {
  V sum{};
  each_vector(n, [&](int64_t i, int64_t count) { sum += term(i, count); });
  return sum_lanes<float, 1>(&sum)[0];
}

RWKV_INLINE V sigmoid_of(V x) { return Sigmoid<float>(x).of_z; }

// x[i] = change(x[i], i) for all vectors.
template <typename Change> RWKV_INLINE void change_all(int64_t n, float* x, Change change) {
  each_vector(n, [&](int64_t i, int64_t count) {
    store_part(x + i, count, change(load_part(x + i, count), i, count));
  });
}

}  // namespace

void normalise(const float* x, const float* weight, const float* bias, float eps, int64_t n,
               float* y) {
  const float mean =
      sum_of(n, [&](int64_t i, int64_t count) { return load_part(x + i, count); }) / n;
  // Both in working memory: lanes without numbers must not count as far from the mean.
  each_vector(n, [&](int64_t i, int64_t count) {
    store_part(y + i, count, load_part(x + i, count) - mean);
  });
  const float squares = sum_of(n, [&](int64_t i, int64_t count) {
    const V away = load_part(y + i, count);
    return away * away;
  });
  const float inverse = 1 / std::sqrt(squares / n + eps);
  change_all(n, y, [&](V away, int64_t i, int64_t count) {
    return away * inverse * load_part(weight + i, count) + load_part(bias + i, count);
  });
}

void mix(const float* x, const float* last, const float* share, const float* more, int64_t n,
         float* y) {
  each_vector(n, [&](int64_t i, int64_t count) {
    const V now = load_part(x + i, count);
    V part = load_part(share + i, count);
    if (more != nullptr) part += load_part(more + i, count);
    store_part(y + i, count, now + (load_part(last + i, count) - now) * part);
  });
}

void add(const float* y, int64_t n, float* x) {
  change_all(n, x, [&](V old, int64_t i, int64_t count) { return old + load_part(y + i, count); });
}

void add_gated(const float* y, const float* gate, int64_t n, float* x) {
  change_all(n, x, [&](V old, int64_t i, int64_t count) {
    return old + sigmoid_of(load_part(gate + i, count)) * load_part(y + i, count);
  });
}

void squared_relu(int64_t n, float* x) {
  change_all(n, x, [](V old, int64_t, int64_t) {
    const V positive = max<float>(0, old);
    return positive * positive;
  });
}

void sigmoid(int64_t n, float* x) {
  change_all(n, x, [](V old, int64_t, int64_t) { return sigmoid_of(old); });
}

void tangent(int64_t n, float* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = std::tanh(x[i]);
}

void gate_sigmoid(const float* gate, int64_t n, float* y) {
  change_all(n, y, [&](V old, int64_t i, int64_t count) {
    return old * sigmoid_of(load_part(gate + i, count));
  });
}

void gate_silu(const float* gate, int64_t n, float* y) {
  change_all(n, y, [&](V old, int64_t i, int64_t count) {
    const V z = load_part(gate + i, count);
    return old * (z * sigmoid_of(z));
  });
}

void mix_values(const float* first, const float* base, const float* logits, int64_t n, float* v) {
  change_all(n, v, [&](V old, int64_t i, int64_t count) {
    const V share = sigmoid_of(load_part(base + i, count) + load_part(logits + i, count));
    return old + (load_part(first + i, count) - old) * share;
  });
}

void make_keys(const float* logits, const float* base, const float* removal,
               const float* replacement, int64_t n, float* k, float* a, float* b) {
  // Shorter keys are not stretched to length 1.
  constexpr float kShortest = 1e-12f;
  const float squares = sum_of(n, [&](int64_t i, int64_t count) {
    const V x = load_part(k + i, count) * load_part(removal + i, count);
    return x * x;
  });
  const float length = std::sqrt(squares), inverse = 1 / (length < kShortest ? kShortest : length);
  each_vector(n, [&](int64_t i, int64_t count) {
    const V key = load_part(k + i, count);
    const Sigmoid<float> rate(load_part(logits + i, count) + load_part(base + i, count));
    const V unit = key * load_part(removal + i, count) * inverse;
    const V share = rate.of_minus_z * load_part(replacement + i, count);
    store_part(k + i, count, key * (1 - share));
    store_part(a + i, count, -unit);
    store_part(b + i, count, unit * rate.of_z);
  });
}

void add_bonus(const float* v, const float* s, const float* gate, int64_t heads, int64_t n,
               float* out) {
  for (int64_t h = 0; h < heads; ++h, v += n, gate += n, out += n) {
    change_all(n, out, [&](V old, int64_t i, int64_t count) {
      return (old + s[h] * load_part(v + i, count)) * load_part(gate + i, count);
    });
  }
}

float wkv7_head(const float* r, const float* w, const float* base, const float* k, const float* v,
                const float* a, const float* b, const float* bonus, const float* before, int64_t n,
                float* forgotten, float* after, float* y) {
  // 1 - exp(-x) by its series, since x, below exp(-1/2), may be so small that the exponential has
  // no digits of it left.
  constexpr float kLargest = 0.60653066f;
  constexpr int kTerms = 11;
  each_vector(n, [&](int64_t i, int64_t count) {
    const V x = kLargest * sigmoid_of(load_part(w + i, count) + load_part(base + i, count));
    V sum = broadcast<float>(1);
    for (int t = kTerms; t > 1; --t) sum = 1 - sum * x * (1.0f / t);
    store_part(forgotten + i, count, x * sum);
  });
  for (int64_t j = 0; j < n; ++j, before += n, after += n) {
    const float along = sum_of(n, [&](int64_t i, int64_t count) {
      return load_part(before + i, count) * load_part(a + i, count);
    });
    y[j] = sum_of(n, [&](int64_t i, int64_t count) {
      const V old = load_part(before + i, count);
      V state = old - old * load_part(forgotten + i, count);
      state += along * load_part(b + i, count) + v[j] * load_part(k + i, count);
      store_part(after + i, count, state);
      return state * load_part(r + i, count);
    });
  }
  return sum_of(n, [&](int64_t i, int64_t count) {
    return load_part(r + i, count) * load_part(k + i, count) * load_part(bonus + i, count);
  });
}

}  // namespace rwkv::step
