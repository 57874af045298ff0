// Backward pass of RWKV-7 as a scan from the last token to the first. With S the state after token
// t, S' the one before it, G the gradient of S (all [value j][key i]) and u = S' a:
//
//   G += gy r^T      gr = S^T gy      gk = G^T v      gv = G k      gb = G^T u      gu = G b
//   ga = S'^T gu     gd[i] = sum_j S'[j][i] G[j][i]                 G <- G diag(d) + gu a^T
//
// Kept by the forward pass: the inputs, and S before every 64th token (checkpoint_interval); not y,
// not u, not d. gd and ga need states and gradients of the same token, though states are known
// forwards and gradients backwards. S starts from the state before every chunk, which the replay
// kernel has left, and is computed again, twice: once to find every u and to park the state before
// every burst of tokens, once per burst to hold its states in registers. Nothing is subtracted or
// inverted. The walk over tokens: gpu_scan/backward_scan.cuh; the whole picture: cuda/README.md,
// "What forward keeps for backward".
//
// At a document start a and d are staged as zero: G passes nothing on; ga is cleared when written.
#pragma once

#include "wkv7_backward_shared.cuh"
#include "wkv7_decay.cuh"

namespace rwkv {

template <class TileType> struct Wkv7BackwardBlock
    : ScanBackwardBlock<Wkv7Backward, TileType, Wkv7BackwardShared<TileType>, kWkv7Sums, kWkv7Sums,
                        2> {
  using Base = ScanBackwardBlock<Wkv7Backward, TileType, Wkv7BackwardShared<TileType>, kWkv7Sums,
                                 kWkv7Sums, 2>;
  using Base::Base, Base::p, Base::parked, Base::place, Base::range, Base::results, Base::shared;
  using Base::kC, Base::kChunk, Base::kN, Base::kR, Base::kRows, Base::kThreads, Base::tile;
  using typename Base::Keys, typename Base::State, typename Base::Values;
  static constexpr int kKeyLanes = TileType::kKeyLanes;
  // The sweep through a chunk uses up its state, and must not overwrite what it finds.
  static constexpr int kStartsIn = 1;

  __device__ void fetch(int64_t t) const {
    const int tokens = range.template tokens_from<kChunk>(t);
    place.fetch_keys(shared.raw_r, p.r, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_k, p.k, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_a, p.a, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_b, p.b, p.dtype, t, tokens);
    place.fetch_values(shared.raw_v, p.v, p.dtype, t, tokens);
    place.fetch_values(shared.raw_gy, p.gy, p.dtype, t, tokens);
    place.fetch_keys(shared.raw_w, p.w, DType::kFloat, t, tokens);
    commit_copies();
  }

  // Tokens beyond the end are staged so that they change nothing: zeros, and d = 1.
  __device__ void widen(int64_t t, int tokens) const {
    const Vec8 zero = Vec8::of(0.0f);
    for (int n = static_cast<int>(threadIdx.x); n < kChunk * kN / kVec8; n += kThreads) {
      const Vec8Place<kN> vec(n);
      const int at = n * kVec8;
      const bool present = vec.token < tokens;
      const bool starts = present && place.starts(p.reset, t + vec.token);
      Wkv7Decay decay = {starts ? zero : Vec8::of(1.0f), zero};
      if (present && !starts) {
        decay = wkv7_decay(based_w(p, shared.raw_w, at, place.head * kN + vec.at));
      }
      store_floats(shared.d + at, decay.decay);
      store_floats(shared.slope + at, decay.slope);
      store_floats(shared.r + at, present ? load_vec8(shared.raw_r, at, p.dtype) : zero);
      store_floats(shared.k + at, present ? load_vec8(shared.raw_k, at, p.dtype) : zero);
      store_floats(shared.b + at, present ? load_vec8(shared.raw_b, at, p.dtype) : zero);
      store_floats(shared.a + at, present && !starts ? load_vec8(shared.raw_a, at, p.dtype) : zero);
    }
    for (int n = static_cast<int>(threadIdx.x); n < kChunk * kRows / kVec8; n += kThreads) {
      const int at = n * kVec8;
      const bool present = Vec8Place<kRows>(n).token < tokens;
      store_floats(shared.v + at, present ? load_vec8(shared.raw_v, at, p.dtype) : zero);
      store_floats(shared.gy + at, present ? load_vec8(shared.raw_gy, at, p.dtype) : zero);
    }
  }

  __device__ __forceinline__ void park_states(State (&S)[kBurst], int last) const {
    sweep(S[0], S[1], last);
  }

  // S[0]: the state before the burst, which begins at token `first` of the chunk
  __device__ __forceinline__ void run_burst(State (&S)[kBurst], State& G, int first) const {
    State after;
#pragma unroll
    for (int m = 0; m < kBurst; ++m) {
      Values u;
      tile.load_rows(u, shared.u + (first + m) * kRows);
      State& next = m + 1 < kBurst ? S[m + 1 < kBurst ? m + 1 : 0] : after;
      advance(next, S[m], u, first + m);
      add_r(next, first + m, m);
    }
#pragma unroll
    for (int m = kBurst - 1; m >= 0; --m) step_back(S[m], G, first + m, m);
  }

  __device__ void write_gv(int64_t t, int first, const Vec8Place<kRows>& vec) const {
    store_vec8(p.gv, place.token(t + first + vec.token) + place.slice * kRows + vec.at, p.dtype,
               load_floats(shared.gv + vec.token * kRows + vec.at));
  }

  __device__ void write_sum(int64_t t, int first, const Vec8Place<kN>& vec, int which) const {
    const int n = first + vec.token;
    Vec8 sum = this->sum_over_warps(vec, which);
    if (which == kWkv7SumW) {
      const Vec8 slope = load_floats(shared.slope + n * kN + vec.at);
#pragma unroll
      for (int i = 0; i < kVec8; ++i) sum.at[i] *= slope.at[i];
      results.write(which, p.gw, place, t + n, vec.at, p.gw_dtype, sum);
      return add_to(shared.gbase + vec.token * kN + vec.at, sum);
    }
    // a was staged as zero there, so what its sum holds is no gradient.
    if (which == kWkv7SumA && place.starts(p.reset, t + n)) sum = Vec8::of(0.0f);
    if (which == kWkv7SumR || which == kWkv7SumK) add_bonus(sum, t, n, vec, which);
    void* const result = which == kWkv7SumR ? p.gr : which == kWkv7SumK ? p.gk
                         : which == kWkv7SumA ? p.ga : p.gb;
    results.write(which, result, place, t + n, vec.at, p.dtype, sum);
  }

  __device__ void clear_totals() const {
    for (int i = static_cast<int>(threadIdx.x); i < kBurst * kN; i += kThreads) {
      shared.gbase[i] = shared.gbonus[i] = 0.0f;
    }
  }
  __device__ void write_totals() const {
    for (int key = static_cast<int>(threadIdx.x); key < kN; key += kThreads) {
      float gbase = 0.0f, gbonus = 0.0f;
      for (int m = 0; m < kBurst; ++m) {
        gbase += shared.gbase[m * kN + key], gbonus += shared.gbonus[m * kN + key];
      }
      results.write_total(0, p.gbase, place, key, gbase, range.end == p.time);
      if (p.gbonus != nullptr) {
        results.write_total(1, p.gbonus, place, key, gbonus, range.end == p.time);
      }
    }
  }

 private:
  // Of token n of the chunk, at vec: what the bonus adds to gr or gk, and once to gbonus. Of a
  // head's slices one is enough.
  __device__ void add_bonus(Vec8& sum, int64_t t, int n, const Vec8Place<kN>& vec,
                            int which) const {
    if (p.gs == nullptr || place.slice != 0) return;
    const float gs = static_cast<const float*>(p.gs)[place.number(t + n)];
    const Vec8 bonus = load_vec8(p.bonus, place.head * kN + vec.at, DType::kFloat);
    const Vec8 r = load_floats(shared.r + n * kN + vec.at);
    const Vec8 k = load_floats(shared.k + n * kN + vec.at);
    Vec8 product;
#pragma unroll
    for (int i = 0; i < kVec8; ++i) {
      // By value: a choice between r and k themselves would put both into memory.
      const float other = which == kWkv7SumR ? k.at[i] : r.at[i];
      sum.at[i] += gs * bonus.at[i] * other;
      product.at[i] = gs * r.at[i] * k.at[i];
    }
    if (which == kWkv7SumR) add_to(shared.gbonus + vec.token * kN + vec.at, product);
  }

  // Always by the same thread for the same place, so that no barrier is needed.
  __device__ static void add_to(float* total, Vec8 x) {
    add_vec8(x, load_floats(total));
    store_floats(total, x);
  }

  // Finds u of every token and the states before the bursts; `before_last` is that of burst `last`.
  // S: the state before the chunk, used up.
  __device__ __forceinline__ void sweep(State& before_last, State& S, int last) const {
    for (int burst = 0; burst <= last; ++burst) {
      if (burst == last) {
#pragma unroll
        for (int i = 0; i < kR; ++i) {
#pragma unroll
          for (int c = 0; c < kC; ++c) before_last[i][c] = S[i][c];
        }
      } else if (burst > 0) {
        tile.park_state(S, parked(burst));
      }
// Unrolled, the operands of several tokens would be held in registers at the same time.
#pragma unroll 1
      for (int n = burst * kBurst; n < (burst + 1) * kBurst; ++n) sweep_token(S, n);
    }
    // A warp reads back its own values' u only.
    __syncwarp();
  }

  // S: the state before token n of the chunk on entry, after it on return.
  __device__ __forceinline__ void sweep_token(State& S, int n) const {
    Keys a;
    Values sums = {}, u;
    tile.load_keys(a, shared.a + n * kN);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) sums[i] += S[i][c] * a[c];
    }
    tile.store_row_sums(sums, shared.u + n * kRows);
    all_gather<kR, kKeyLanes>(u, sums[0], tile.lane);
    advance(S, S, u, n);
  }

  // to: the state after token n of the chunk, from: the one before it
  __device__ __forceinline__ void advance(State& to, const State& from, const Values& u,
                                          int n) const {
    Keys d, b, k;
    Values v;
    tile.load_keys(d, shared.d + n * kN);
    tile.load_keys(b, shared.b + n * kN);
    tile.load_keys(k, shared.k + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) to[i][c] = from[i][c] * d[c] + u[i] * b[c] + v[i] * k[c];
    }
  }

  // S: the state after token n of the chunk, m of the burst
  __device__ __forceinline__ void add_r(const State& S, int n, int m) const {
    Values gy;
    Keys gr = {};
    tile.load_rows(gy, shared.gy + n * kRows);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) gr[c] += gy[i] * S[i][c];
    }
    tile.store_key_sums(gr, shared.sums_of(m, tile.warp, kWkv7SumR));
  }

  // S: the state before token n of the chunk, m of the burst. G: without that token's gy on entry.
  __device__ __forceinline__ void step_back(const State& S, State& G, int n, int m) const {
    Values gu;
    take_in_output(G, gu, n, m);
    Keys d, a, gk = {}, ga = {}, gb = {}, gd = {};
    Values v, u;
    tile.load_keys(d, shared.d + n * kN);
    tile.load_keys(a, shared.a + n * kN);
    tile.load_rows(v, shared.v + n * kRows);
    tile.load_rows(u, shared.u + n * kRows);
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        gk[c] += v[i] * G[i][c];
        gb[c] += u[i] * G[i][c];
        gd[c] += S[i][c] * G[i][c];
        ga[c] += gu[i] * S[i][c];
        G[i][c] = G[i][c] * d[c] + gu[i] * a[c];
      }
    }
    tile.store_key_sums(gk, shared.sums_of(m, tile.warp, kWkv7SumK));
    tile.store_key_sums(ga, shared.sums_of(m, tile.warp, kWkv7SumA));
    tile.store_key_sums(gb, shared.sums_of(m, tile.warp, kWkv7SumB));
    tile.store_key_sums(gd, shared.sums_of(m, tile.warp, kWkv7SumW));
  }

  // G += gy r^T, gv = G k to shared memory, gu = G b to all lanes that own the value.
  __device__ __forceinline__ void take_in_output(State& G, Values& gu, int n, int m) const {
    Keys r, k, b;
    Values gy;
    tile.load_keys(r, shared.r + n * kN);
    tile.load_keys(k, shared.k + n * kN);
    tile.load_keys(b, shared.b + n * kN);
    tile.load_rows(gy, shared.gy + n * kRows);
    float sums[2 * kR] = {};  // gu, then gv
#pragma unroll
    for (int i = 0; i < kR; ++i) {
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        G[i][c] += gy[i] * r[c];
        sums[i] += G[i][c] * b[c];
        sums[kR + i] += G[i][c] * k[c];
      }
    }
    reduce_scatter<2 * kR, kKeyLanes, 1>(sums, tile.lane);
    const int which = first_sum_kept<2 * kR, kKeyLanes, 1>(tile.lane);
    if (which >= kR && writes_sum<2 * kR, kKeyLanes, 1>(tile.lane)) {
      shared.gv[m * kRows + tile.first_row() + which - kR] = sums[0];
    }
    all_gather<2 * kR, kKeyLanes>(gu, sums[0], tile.lane);
  }
};

}  // namespace rwkv
