// Backward pass of RWKV-7 as a scan from the last token to the first. With S the state after token
// t, S' the one before it, G the gradient of S (all [value j][key i]) and u = S' a:
//
//   G += gy r^T      gr = S^T gy      gk = G^T v      gv = G k      gb = G^T u      gu = G b
//   ga = S'^T gu     gd[i] = sum_j S'[j][i] G[j][i]                 G <- G diag(d) + gu a^T
//
// gd and ga need states and gradients of the same token, though states are known forwards and
// gradients backwards. S starts from the state kept before every chunk and is computed again,
// twice: once to find every u and to park the state before every burst of tokens, once per burst to
// hold its states in registers. Nothing is subtracted or inverted.
//
// At a document start a and d are staged as zero: G passes nothing on; ga is cleared when written.
#pragma once

#include "../common/gpu_scan/slices.cuh"
#include "wkv7.h"
#include "wkv7_decay.cuh"

namespace rwkv {

enum Wkv7Sum { kWkv7SumR, kWkv7SumK, kWkv7SumA, kWkv7SumB, kWkv7SumW, kWkv7Sums };

template <class TileType> struct Wkv7BackwardShared {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kChunk = TileType::kChunk;
  // Of a chunk's bursts the first one's state is in memory and the last one's is not read again.
  static constexpr int kParked = kChunk / kBurst - 2;

  float *r, *k, *a, *b, *d, *slope;  // [kChunk][kN]; slope: of the decay by w
  float *v, *gy, *u;                 // [kChunk][kRows]
  float* sums;                       // [kBurst][kWarps][kWkv7Sums][kN]: over the values of a warp
  float* gv;                         // [kBurst][kRows]
  float* parked;                     // [kParked][kThreads][kR][kC]
  unsigned char *raw_r, *raw_k, *raw_a, *raw_b, *raw_v, *raw_gy, *raw_w;
  int bytes;

  __host__ __device__ Wkv7BackwardShared(unsigned char* base, DType dtype) {
    Pieces pieces(base);
    for (float** keys : {&r, &k, &a, &b, &d, &slope}) *keys = pieces.floats(kChunk * kN);
    for (float** values : {&v, &gy, &u}) *values = pieces.floats(kChunk * kRows);
    sums = pieces.floats(kBurst * TileType::kWarps * kWkv7Sums * kN);
    gv = pieces.floats(kBurst * kRows);
    parked = pieces.floats(kParked * kRows * kN);
    const int width = element_bytes(dtype);
    for (unsigned char** raw : {&raw_r, &raw_k, &raw_a, &raw_b}) {
      *raw = pieces.bytes(kChunk * kN * width);
    }
    for (unsigned char** raw : {&raw_v, &raw_gy}) *raw = pieces.bytes(kChunk * kRows * width);
    raw_w = pieces.bytes(kChunk * kN * 4);
    bytes = pieces.used();
  }
  __device__ float* sums_of(int token, int warp, int which) const {
    return sums + ((token * TileType::kWarps + warp) * kWkv7Sums + which) * kN;
  }
};

template <class TileType> struct Wkv7BackwardBlock {
  static constexpr int kN = TileType::kN, kRows = TileType::kRows, kR = TileType::kR;
  static constexpr int kC = TileType::kC, kKeyLanes = TileType::kKeyLanes;
  static constexpr int kThreads = TileType::kThreads, kChunk = TileType::kChunk;
  using State = float[kR][kC];
  using Keys = float[kC];
  using Values = float[kR];

  const Wkv7Backward& p;
  const TokenRange range;
  const StatesAt<const float*> states;  // before every chunk
  const HeadPlace<TileType> place;
  const SliceSums<TileType, kWkv7Sums, 0> results;
  const Wkv7BackwardShared<TileType> shared;
  const TileType tile;

  __device__ Wkv7BackwardBlock(const Wkv7Backward& p, const TokenRange& range,
                               const StatesAt<const float*>& states, float* slices, int64_t block,
                               unsigned char* base)
      : p(p), range(range), states(states), place(p, block), results(p, range, slices),
        shared(base, p.dtype) {}

  // G: the gradient of the state after the range on entry, of the one before it on return.
  __device__ __forceinline__ void scan(State& G) const {
    const int64_t chunks = ceil_div(range.end - range.begin, kChunk);
    fetch(range.begin + (chunks - 1) * kChunk);
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t t = range.begin + chunk * kChunk;
      const int tokens = range.tokens_from<kChunk>(t), last = (tokens - 1) / kBurst;
      State S[kBurst];
      tile.load_state(S[1], states.of(place, t));
      wait_for_copies();
      __syncthreads();
      widen(t, tokens);
      __syncthreads();
      if (chunk > 0) fetch(t - kChunk);
      sweep(S[0], S[1], last);
      for (int burst = last; burst >= 0; --burst) {
        if (burst < last) {
          if (burst == 0) tile.load_state(S[0], states.of(place, t));
          else tile.unpark_state(S[0], parked(burst));
        }
        run_burst(S, G, burst * kBurst);
        __syncthreads();
        write_burst(t, burst * kBurst, tokens);
        __syncthreads();
      }
    }
  }

 private:
  // Where the state before burst number 1 .. kParked lies.
  __device__ float* parked(int burst) const { return shared.parked + (burst - 1) * kRows * kN; }

  __device__ void fetch(int64_t t) const {
    const int tokens = range.tokens_from<kChunk>(t);
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
      const int at = n * kVec8, token = Vec8Place<kN>(n).token;
      const bool present = token < tokens;
      const bool starts = present && place.starts(p.reset, t + token);
      Wkv7Decay decay = {starts ? zero : Vec8::of(1.0f), zero};
      if (present && !starts) decay = wkv7_decay(load_vec8(shared.raw_w, at, DType::kFloat));
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

  __device__ void write_burst(int64_t t, int first, int tokens) const {
    constexpr int kPerSum = kBurst * kN / kVec8;
    constexpr int kTasks = kWkv7Sums * kPerSum + kBurst * kRows / kVec8;
    for (int task = static_cast<int>(threadIdx.x); task < kTasks; task += kThreads) {
      const int which = task / kPerSum, rest = task - which * kPerSum;
      if (which == kWkv7Sums) {
        const Vec8Place<kRows> vec(rest);
        const int n = first + vec.token;
        if (n >= tokens) continue;
        store_vec8(p.gv, place.token(t + n) + place.slice * kRows + vec.at, p.dtype,
                   load_floats(shared.gv + rest * kVec8));
      } else {
        const Vec8Place<kN> vec(rest);
        if (first + vec.token < tokens) write_sum(t, first, vec, which);
      }
    }
  }

  __device__ void write_sum(int64_t t, int first, const Vec8Place<kN>& vec, int which) const {
    const int n = first + vec.token;
    Vec8 sum = load_floats(shared.sums_of(vec.token, 0, which) + vec.at);
    for (int warp = 1; warp < TileType::kWarps; ++warp) {
      add_vec8(sum, load_floats(shared.sums_of(vec.token, warp, which) + vec.at));
    }
    if (which == kWkv7SumW) {
      const Vec8 slope = load_floats(shared.slope + n * kN + vec.at);
#pragma unroll
      for (int i = 0; i < kVec8; ++i) sum.at[i] *= slope.at[i];
      return results.write(which, p.gw, place, t + n, vec.at, DType::kFloat, sum);
    }
    if (which == kWkv7SumA && place.starts(p.reset, t + n)) sum = Vec8::of(0.0f);
    void* const result = which == kWkv7SumR ? p.gr : which == kWkv7SumK ? p.gk
                         : which == kWkv7SumA ? p.ga : p.gb;
    results.write(which, result, place, t + n, vec.at, p.dtype, sum);
  }
};

// What it computes: for a range of tokens every gradient of wkv7_forward_kernel; where a head has
// several slices, sums over values are left per slice.
// What a thread owns: kR values x kC keys of S for kBurst tokens, and of G.
// What it gave up: work, for the states are computed twice again, and parallelism over time.
template <class TileType>
__global__ void __launch_bounds__(TileType::kThreads, 256 / TileType::kThreads)
    wkv7_backward_kernel(const __grid_constant__ Wkv7Backward p, TokenRange range,
                         StatesAt<const float*> states, float* slices) {
  DYNAMIC_SHARED(base);
  const Wkv7BackwardBlock<TileType> block(p, range, states, slices, blockIdx.x, base);
  // Between ranges gstate carries the gradient on.
  const auto* after = static_cast<const float*>(range.end == p.time ? p.gfinal_state : p.gstate);
  const int64_t at = block.place.state();
  float G[TileType::kR][TileType::kC];
  block.tile.load_state(G, after == nullptr ? nullptr : after + at);
  block.scan(G);
  block.tile.store_state(G, static_cast<float*>(p.gstate) + at);
}

}  // namespace rwkv
