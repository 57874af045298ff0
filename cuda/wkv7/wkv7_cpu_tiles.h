// The N x N work of WKV-7 on a CPU. Per head, with a state S[value j][key i]:
//
//   u = S a        S <- S diag(d) + u b^T + v k^T        y = S r        (y reads the new S)
//
// Value rows of S are independent of each other, keys are not: u needs a whole row before any of it
// changes. So the forward pass gives every lane a value, walks the keys one after another and forms
// the next token's u while it writes this token's state. The backward pass gives every lane a key,
// because all gradients but those of v and u are sums over values; the u it needs come from running
// the forward pass again, so that computing the states again needs no sums over lanes.
//
// Nowhere is a state recovered from its successor: dividing by decays loses digits.
// S d and G d are never rounded by themselves, but with what is added to them (a fused multiply-add):
// with d just below 1 nearly all of these roundings would go the same way, and so add up.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cpu/prefetch.h"
#include "../common/cpu/tiles.h"
#include "../common/cpu/vector.h"

namespace rwkv {

// At most kBlock tokens of one head, none of which but the first starts a document. Rows of
// `stride` elements, padded with zeros.
template <typename T> struct DeltaBlock {
  int64_t tokens, stride;
  const T *r, *d, *k, *v, *a, *b, *gy;  // inputs, decay per token, gradient of y
  const T* zeros;                       // one row
  const T *ab, *rb;                     // per token t: a[t] . b[t - 1] and r[t - 1] . b[t - 1]
  T *y, *u;                             // forward: results; u is an input of the backward pass
  T* gv;                                // backward: a result
  T *gr, *gd, *gk, *ga, *gb;            // backward: sums so far; gd is that of d
  T* history;                           // kBlock + 1 tiles of kDeltaRows rows
  Prefetch* prefetch;                   // called once a tile, forward once a tile and token
};

// Rows of a tile of the backward pass.
template <typename T> constexpr int kDeltaRows = std::min(4, kLanes<T>);

// What it computes: y, u and the state after the block, where kWithOutput is false without y; where
// kWithValues is false as if v were zero.
// What a call owns: kVectors vectors of values of `state` [key][value], all keys.
// What it gave up: holding the state in registers; a row of keys is too long for them.
template <typename T, int kVectors, bool kWithOutput, bool kWithValues>
void delta_forward_tile(const DeltaBlock<T> p, T* state, int64_t value) {
  constexpr int L = kLanes<T>;
  T* const column = state + value;
  Vec<T> u[kVectors] = {};
  for (int64_t i = 0; i < p.stride; ++i) {
    const Vec<T> a = broadcast<T>(p.a[i]);
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) u[c] += a * load<T>(column + i * p.stride + c * L);
  }
  for (int64_t row = 0; row < p.tokens * p.stride; row += p.stride) {
    // Behind the last token there is no next one; its product is computed and dropped.
    const int64_t next_row = row + p.stride < p.tokens * p.stride ? row + p.stride : row;
    if (kWithOutput) p.prefetch->fetch();
    Vec<T> v[kVectors] = {}, y[kVectors] = {}, next_u[kVectors] = {};
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      if (kWithValues) v[c] = load<T>(p.v + row + value + c * L);
      store<T>(p.u + row + value + c * L, u[c]);
    }
    for (int64_t i = 0; i < p.stride; ++i) {
      const Vec<T> d = broadcast<T>(p.d[row + i]), b = broadcast<T>(p.b[row + i]);
      const Vec<T> k = broadcast<T>(kWithValues ? p.k[row + i] : T(0));
      const Vec<T> next_a = broadcast<T>(p.a[next_row + i]);
      const Vec<T> r = broadcast<T>(kWithOutput ? p.r[row + i] : T(0));
      T* const at = column + i * p.stride;
#pragma GCC unroll 4
      for (int c = 0; c < kVectors; ++c) {
        const Vec<T> added = kWithValues ? u[c] * b + v[c] * k : u[c] * b;
        const Vec<T> S = load<T>(at + c * L) * d + added;
        if (kWithOutput) y[c] += S * r;
        next_u[c] += S * next_a;
        store<T>(at + c * L, S);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      if (kWithOutput) store<T>(p.y + row + value + c * L, y[c]);
      u[c] = next_u[c];
    }
  }
}

// What it computes: the states of the block again, all kept in p.history, and gr += S gy.
// What a call owns: kDeltaRows rows of values from `value` on of `state` [value][key], which is the
// block's first.
// What it gave up: registers; the rows of all tokens go to the first-level cache.
template <typename T> void delta_replay_tile(const DeltaBlock<T> p, const T* state, int64_t value) {
  constexpr int R = kDeltaRows<T>, L = kLanes<T>;
  T* saved = p.history;
  const int64_t tile = R * p.stride;
  for (int64_t n = 0; n < tile; n += L) store<T>(saved + n, load<T>(state + value * p.stride + n));
  for (int64_t row = 0; row < p.tokens * p.stride; row += p.stride, saved += tile) {
    Vec<T> u[R], v[R], gy[R];
    broadcast_each<T, R>(u, p.u + row + value);
    broadcast_each<T, R>(v, p.v + row + value);
    broadcast_each<T, R>(gy, p.gy + row + value);
    for (int64_t i = 0; i < p.stride; i += L) {
      const Vec<T> d = load<T>(p.d + row + i), b = load<T>(p.b + row + i);
      const Vec<T> k = load<T>(p.k + row + i);
      Vec<T> gr = load<T>(p.gr + row + i);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) {
        const Vec<T> S = load<T>(saved + j * p.stride + i) * d + (u[j] * b + v[j] * k);
        gr += S * gy[j];
        store<T>(saved + tile + j * p.stride + i, S);
      }
      store<T>(p.gr + row + i, gr);
    }
  }
}

// What it computes: from the last token to the first, with G the gradient of the state after token
// t and gu = G b that of u: gk += G v, gb += G u, gd += S G, ga += S gu (S before token t) and
// gv = G k.
// What a call owns: kDeltaRows rows of values of `gradient` [value][key]: on entry what later
// blocks contribute to the state after this one, on return the gradient of the state before it.
// What it gave up: as many multiplications again for gu, so that no sum over lanes lies between
// one token and the next.
//
// G of token t - 1 is G diag(d) + gu a^T + gy r^T, with gy and r of t - 1; multiplying this out
// gives the gu of t - 1 without waiting for the new G.
template <typename T> void delta_backward_tile(const DeltaBlock<T> p, T* gradient, int64_t value) {
  constexpr int R = kDeltaRows<T>, L = kLanes<T>;
  const int64_t tile = R * p.stride, last = (p.tokens - 1) * p.stride;
  T* const G_rows = gradient + value * p.stride;
  Vec<T> gu[R] = {}, gy[R];
  broadcast_each<T, R>(gy, p.gy + last + value);
  for (int64_t i = 0; i < p.stride; i += L) {
    const Vec<T> r = load<T>(p.r + last + i), b = load<T>(p.b + last + i);
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) {
      const Vec<T> G = load<T>(G_rows + j * p.stride + i) + gy[j] * r;
      gu[j] += G * b;
      store<T>(G_rows + j * p.stride + i, G);
    }
  }
  spread_sums<T, R>(gu);
  for (int64_t t = p.tokens - 1; t >= 0; --t) {
    const int64_t row = t * p.stride;
    const T* const r_before = t > 0 ? p.r + row - p.stride : p.zeros;
    const T* const b_before = t > 0 ? p.b + row - p.stride : p.zeros;
    const T* const gy_before = t > 0 ? p.gy + row - p.stride + value : p.zeros;
    const T* const saved = p.history + t * tile;
    Vec<T> u[R], v[R], sums[2 * R] = {};  // of gv, and of gu of the token before
    broadcast_each<T, R>(u, p.u + row + value);
    broadcast_each<T, R>(v, p.v + row + value);
    broadcast_each<T, R>(gy, gy_before);
    for (int64_t i = 0; i < p.stride; i += L) {
      const Vec<T> k = load<T>(p.k + row + i), d = load<T>(p.d + row + i);
      const Vec<T> a = load<T>(p.a + row + i), r = load<T>(r_before + i);
      const Vec<T> decayed_b = d * load<T>(b_before + i);
      Vec<T> gk = load<T>(p.gk + row + i), gb = load<T>(p.gb + row + i);
      Vec<T> gd = load<T>(p.gd + row + i), ga = load<T>(p.ga + row + i);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) {
        const Vec<T> G = load<T>(G_rows + j * p.stride + i), S = load<T>(saved + j * p.stride + i);
        gk += G * v[j];
        gb += G * u[j];
        gd += G * S;
        ga += S * gu[j];
        sums[j] += G * k;
        sums[R + j] += G * decayed_b;
        store<T>(G_rows + j * p.stride + i, G * d + (gy[j] * r + gu[j] * a));
      }
      store<T>(p.gk + row + i, gk);
      store<T>(p.gb + row + i, gb);
      store<T>(p.gd + row + i, gd);
      store<T>(p.ga + row + i, ga);
    }
    Vec<T> gu_before[R];
    store_and_spread<T, R>(sums, p.gv + row + value, gu_before);
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) gu[j] = gu_before[j] + gu[j] * p.ab[t] + gy[j] * p.rb[t];
  }
}

// Vectors of a tile of the forward pass.
template <typename T> constexpr int kDeltaVectors = kRegisters == 32 ? 4 : 2;

template <typename T> int64_t forward_tile_count(int64_t stride) {
  const int64_t vectors = stride / kLanes<T>;
  return vectors / kDeltaVectors<T> + vectors % kDeltaVectors<T>;
}

template <typename T, bool kWithOutput, bool kWithValues = true>
void delta_forward(const DeltaBlock<T>& p, T* state) {
  constexpr int kMost = kDeltaVectors<T>;
  int64_t value = 0;
  for (; value + kMost * kLanes<T> <= p.stride; value += kMost * kLanes<T>) {
    delta_forward_tile<T, kMost, kWithOutput, kWithValues>(p, state, value);
  }
  for (; value < p.stride; value += kLanes<T>) {
    delta_forward_tile<T, 1, kWithOutput, kWithValues>(p, state, value);
  }
}

template <typename T> void delta_backward(const DeltaBlock<T>& p, const T* state, T* gradient) {
  for (int64_t value = 0; value < p.stride; value += kDeltaRows<T>) {
    p.prefetch->fetch();
    delta_replay_tile(p, state, value);
    delta_backward_tile(p, gradient, value);
  }
}

}  // namespace rwkv
