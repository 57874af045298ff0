// What a block does to one token between its matrix products; plain C++, no torch. All in fp32.
// n: numbers of a row.
#pragma once

#include <cstdint>

namespace rwkv::step {

// y = (x - mean) / sqrt(variance + eps) weight + bias
void normalise(const float* x, const float* weight, const float* bias, float eps, int64_t n,
               float* y);

// y = x + (last - x) (share + more); more may be null: 0
void mix(const float* x, const float* last, const float* share, const float* more, int64_t n,
         float* y);

// x += y, and x += y / (1 + exp(-gate))
void add(const float* y, int64_t n, float* x);
void add_gated(const float* y, const float* gate, int64_t n, float* x);

void squared_relu(int64_t n, float* x);
void sigmoid(int64_t n, float* x);
void tangent(int64_t n, float* x);

// y *= 1 / (1 + exp(-gate)), and y *= gate / (1 + exp(-gate))
void gate_sigmoid(const float* gate, int64_t n, float* y);
void gate_silu(const float* gate, int64_t n, float* y);

// v += (first - v) / (1 + exp(-(base + logits)))
void mix_values(const float* first, const float* base, const float* logits, int64_t n, float* v);

// RWKV-7's keys, as in keys_cpu.cpp, for one head; overwrites k.
void make_keys(const float* logits, const float* base, const float* removal,
               const float* replacement, int64_t n, float* k, float* a, float* b);

// out = (out + s v) gate for `heads` heads of n channels; s: a number a head. What RWKV-7 does to
// the norms of heads.
void add_bonus(const float* v, const float* s, const float* gate, int64_t heads, int64_t n,
               float* out);

// One token of RWKV-7's recurrence (src/rwkv_train/ops/wkv7) for one head of n channels. w: before
// the sigmoid, with its base.  forgotten: n numbers of working memory.  before, after: [N_value,
// N_key].  Returns s, the sum of r k bonus.
float wkv7_head(const float* r, const float* w, const float* base, const float* k, const float* v,
                const float* a, const float* b, const float* bonus, const float* before, int64_t n,
                float* forgotten, float* after, float* y);

}  // namespace rwkv::step
