// The recurrence of RWKV-5 and 6 on a CPU: per head, a state S[value j][key i] that decays per key
// channel and takes in outer products. Per token, reading S before the token enters it:
//
//   y[j] = sum_i r[i] (S[j][i] + u[i] k[i] v[j])        S[j][i] <- d[i] S[j][i] + k[i] v[j]
//
// Tiles of kRows x kVectors vectors of the state stay in registers for a block of tokens. Forward,
// the lanes are value channels, so that the sum over keys needs no sum over lanes. Backward, they
// are key channels, because gr, gk and the decay's gradient are sums over values. The backward pass
// computes the states inside a block again and multiplies them by the gradient of the state for the
// decay's gradient, which therefore needs no subtraction.
#pragma once

#include <cstdint>

#include "../common/cpu/prefetch.h"
#include "../common/cpu/tiles.h"
#include "../common/cpu/vector.h"

namespace rwkv {

// At most kBlock tokens of one head, none of which but the first starts a document. Rows of
// `stride` elements, padded with zeros.
template <typename T> struct Wkv5_6Block {
  int64_t tokens, stride;
  const T *r, *k, *v, *d, *gy;   // inputs, decay per token, gradient of y
  T *y;                          // forward: the sum so far, without the bonus
  T *gr, *gk, *gv, *gd;          // backward: sums so far, without the bonus; gd is that of d
  T *history;                    // kBlock tiles
  Prefetch* prefetch;            // called once a tile
};

// What it computes: y += r S and S <- d S + k v, token by token.
// What a call owns: kRows keys x kVectors vectors of values of `state` [key][value].
// What it gave up: using matrix products over the block; they need no fewer operations at 64
// channels a head.
template <typename T, int kVectors>
void wkv5_6_forward_tile(const Wkv5_6Block<T> b, T* state, int64_t key, int64_t value) {
  constexpr int R = kRows<T>, L = kLanes<T>;
  T* const corner = state + key * b.stride + value;
  VectorTile<T, R, kVectors> S;
  S.load_from(corner, b.stride);
  for (int64_t row = 0; row < b.tokens * b.stride; row += b.stride) {
    Vec<T> r[R], k[R], d[R];
    broadcast_each<T, R>(r, b.r + row + key);
    broadcast_each<T, R>(k, b.k + row + key);
    broadcast_each<T, R>(d, b.d + row + key);
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      const int64_t here = row + value + c * L;
      const Vec<T> v = load<T>(b.v + here);
      Vec<T> y = load<T>(b.y + here);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        y += r[i] * S.at[i][c];
        S.at[i][c] = d[i] * S.at[i][c] + k[i] * v;
      }
      store<T>(b.y + here, y);
    }
  }
  S.store_to(corner, b.stride);
}

// What it computes: S <- d S + k v over the block.
// What a call owns: kRows values x kVectors vectors of keys of `from` and `to` [value][key].
// What it gave up: y, so that the backward pass may have the states in its own orientation.
template <typename T, int kVectors>
void wkv5_6_advance_tile(const Wkv5_6Block<T> b, const T* from, T* to, int64_t value, int64_t key) {
  constexpr int R = kRows<T>, L = kLanes<T>;
  VectorTile<T, R, kVectors> S;
  S.load_from(from + value * b.stride + key, b.stride);
  for (int64_t row = 0; row < b.tokens * b.stride; row += b.stride) {
    Vec<T> v[R];
    broadcast_each<T, R>(v, b.v + row + value);
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      const Vec<T> d = load<T>(b.d + row + key + c * L), k = load<T>(b.k + row + key + c * L);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) S.at[j][c] = d * S.at[j][c] + k * v[j];
    }
  }
  S.store_to(to + value * b.stride + key, b.stride);
}

// What it computes: first the states of the block again, kept in b.history, and gr += S gy; then,
// from the last token to the first, G <- d G + r gy with gk += G v, gv += G k, gd += S G.
// What a call owns: kRows values x kVectors vectors of keys of `state` (at the block's start) and
// `gradient` (of the state after the block on entry, at its start on return), both [value][key].
// What it gave up: work, to compute the block's states again; they never leave the first-level
// cache.
template <typename T, int kVectors> void wkv5_6_backward_tile(const Wkv5_6Block<T> b,
                                                              const T* state, T* gradient,
                                                              int64_t value, int64_t key) {
  constexpr int R = kRows<T>, L = kLanes<T>, kTile = R * kVectors * L;
  const int64_t corner = value * b.stride + key;
  VectorTile<T, R, kVectors> S;
  S.load_from(state + corner, b.stride);
  T* saved = b.history;
  for (int64_t row = 0; row < b.tokens * b.stride; row += b.stride, saved += kTile) {
    Vec<T> v[R], gy[R];
    broadcast_each<T, R>(v, b.v + row + value);
    broadcast_each<T, R>(gy, b.gy + row + value);
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      const int64_t here = row + key + c * L;
      const Vec<T> d = load<T>(b.d + here), k = load<T>(b.k + here);
      Vec<T> gr = load<T>(b.gr + here);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) {
        store<T>(saved + (j * kVectors + c) * L, S.at[j][c]);
        gr += S.at[j][c] * gy[j];
        S.at[j][c] = d * S.at[j][c] + k * v[j];
      }
      store<T>(b.gr + here, gr);
    }
  }

  VectorTile<T, R, kVectors> G;
  G.load_from(gradient + corner, b.stride);
  for (int64_t row = (b.tokens - 1) * b.stride; row >= 0; row -= b.stride) {
    saved -= kTile;
    Vec<T> v[R], gy[R], gv[R] = {};
    broadcast_each<T, R>(v, b.v + row + value);
    broadcast_each<T, R>(gy, b.gy + row + value);
#pragma GCC unroll 4
    for (int c = 0; c < kVectors; ++c) {
      const int64_t here = row + key + c * L;
      const Vec<T> r = load<T>(b.r + here), k = load<T>(b.k + here), d = load<T>(b.d + here);
      Vec<T> gk = load<T>(b.gk + here), gd = load<T>(b.gd + here);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) {
        gk += G.at[j][c] * v[j];
        gd += G.at[j][c] * load<T>(saved + (j * kVectors + c) * L);
        gv[j] += G.at[j][c] * k;
        G.at[j][c] = d * G.at[j][c] + r * gy[j];
      }
      store<T>(b.gk + here, gk);
      store<T>(b.gd + here, gd);
    }
    add_sums<T, R>(b.gv + row + value, gv);
  }
  G.store_to(gradient + corner, b.stride);
}

template <typename T> void wkv5_6_forward(const Wkv5_6Block<T>& b, T* state) {
  for_each_tile<T>(b.stride, [&](auto vectors, int64_t key, int64_t value) {
    b.prefetch->fetch();
    wkv5_6_forward_tile<T, vectors.value>(b, state, key, value);
  });
}

template <typename T> void wkv5_6_advance(const Wkv5_6Block<T>& b, const T* from, T* to) {
  for_each_tile<T>(b.stride, [&](auto vectors, int64_t value, int64_t key) {
    wkv5_6_advance_tile<T, vectors.value>(b, from, to, value, key);
  });
}

template <typename T> void wkv5_6_backward(const Wkv5_6Block<T>& b, const T* state, T* gradient) {
  for_each_tile<T>(b.stride, [&](auto vectors, int64_t value, int64_t key) {
    b.prefetch->fetch();
    wkv5_6_backward_tile<T, vectors.value>(b, state, gradient, value, key);
  });
}

}  // namespace rwkv
