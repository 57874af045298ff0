// Backward pass of RWKV-4. With q = gy / (b + exp(u + k)) and al, be the gradients of the sums
// after token t, everything per channel:
//
//   gv = q exp(u + k) + exp(k) al           gk = q exp(u + k) (v - y) + exp(k) (al v + be)
//   gu += q exp(u + k) (v - y)              gw += step exp(step) (al a + be b)
//   al <- exp(step) al + q                  be <- exp(step) be - q y
//
// Kept as al = A exp(R), be = B exp(R), no exponent rises above 0 (but for what a gradient of the
// final state brings along). The sums before every token of a chunk are computed again from the
// state that the forward pass kept; y is not read back, because it was rounded.
#pragma once

#include "wkv4_channels.cuh"

namespace rwkv {

template <DType kType> struct Wkv4BackwardShared {
  float* sums;  // [kWkv4Chunk][3][kWkv4Threads]: aa, bb, pp before every token
  FetchedChunks<kType> k, v, gy;
  int bytes;

  __host__ __device__ explicit Wkv4BackwardShared(unsigned char* base) {
    Pieces pieces(base);
    sums = pieces.floats(kWkv4Chunk * 3 * kWkv4Threads);
    for (auto* fetched : {&k, &v, &gy}) fetched->take(pieces);
    bytes = pieces.used();
  }
};

// One thread's channel going backwards through its segment; kWithResults false finds only what the
// segment adds to the adjoints.
template <DType kType, bool kWithResults> struct Wkv4BackwardThread {
  const Wkv4Backward& p;
  const Wkv4Place place;
  const Wkv4BackwardShared<kType> shared;
  const ChannelRows kept;
  float step = 0.0f, u = 0.0f, gw = 0.0f, gu = 0.0f;
  Stretch adjoint = Stretch::empty();

  __device__ Wkv4BackwardThread(const Wkv4Backward& p, const Segments& segments,
                                unsigned char* base)
      : p(p), place(p, segments), shared(base),
        kept{static_cast<float*>(const_cast<void*>(p.checkpoints)), p.kept, 3, p.width} {
    if (!place.exists) return;
    step = wkv4_log_decay(static_cast<const float*>(p.w)[place.channel]);
    u = static_cast<const float*>(p.u)[place.channel];
  }

  __device__ __forceinline__ void walk() {
    int64_t t = place.begin + (place.end - 1 - place.begin) / kWkv4Chunk * kWkv4Chunk;
    int buffer = 0;
    fetch(t, buffer);
    for (; t >= place.begin; t -= kWkv4Chunk, buffer ^= 1) {
      wait_for_copies();
      __syncthreads();
      // The other buffer was read before that barrier.
      if (t > place.begin) fetch(t - kWkv4Chunk, buffer ^ 1);
      const unsigned starts = document_starts(p.reset, p, place, t, tokens_at(t));
      if (place.exists) run_chunk(t, buffer, starts);
    }
  }

 private:
  __device__ int tokens_at(int64_t t) const {
    return static_cast<int>(place.end - t < kWkv4Chunk ? place.end - t : kWkv4Chunk);
  }
  __device__ void fetch(int64_t t, int buffer) const {
    shared.k.fetch(buffer, p.k, p, place, t, tokens_at(t));
    shared.v.fetch(buffer, p.v, p, place, t, tokens_at(t));
    shared.gy.fetch(buffer, p.gy, p, place, t, tokens_at(t));
    commit_copies();
  }

  // starts: the tokens of the chunk that begin a document, a bit each
  __device__ __forceinline__ void run_chunk(int64_t t, int buffer, unsigned starts) {
    const int own = static_cast<int>(threadIdx.x), tokens = tokens_at(t);
    Stretch sums = kept.load(place.row, t / kWkv4Chunk, place.channel);
#pragma unroll 4
    for (int n = 0; n < tokens; ++n) {
      if ((starts >> n & 1) != 0) sums.forget();
      float* const saved = shared.sums + n * 3 * kWkv4Threads + own;
      // Within a chunk the rest is so small that exp(rest) is 1 + rest.
      saved[0] = sums.aa + sums.aa * sums.rest, saved[kWkv4Threads] = sums.bb + sums.bb * sums.rest;
      saved[2 * kWkv4Threads] = sums.pp;
      sums.add(step, shared.k.own(buffer, n), shared.v.own(buffer, n), 1.0f);
    }
    if (t + tokens == p.time) start_from_final_state(sums);
    int64_t at = place.token(p, t + tokens - 1);
#pragma unroll 2
    for (int n = tokens - 1; n >= 0; --n, at -= p.width) {
      step_back(at, n, buffer);
      if ((starts >> n & 1) != 0) adjoint.forget();
    }
  }

  // The adjoints of the final state; its pp counts as a constant.
  __device__ void start_from_final_state(const Stretch& sums) {
    if (p.gfinal_state == nullptr) return;
    const float* const given =
        static_cast<const float*>(p.gfinal_state) + place.row * 3 * p.width + place.channel;
    adjoint.aa = given[0], adjoint.bb = given[p.width], adjoint.pp = -sums.pp;
    adjoint.rest = 0.0f;
  }

  // Token n of the chunk, the channel's index in tensors [B, T, A] being `at`.
  __device__ __forceinline__ void step_back(int64_t at, int n, int buffer) {
    const float k = shared.k.own(buffer, n), v = shared.v.own(buffer, n);
    const float gy = shared.gy.own(buffer, n);
    const float* const saved = shared.sums + n * 3 * kWkv4Threads + threadIdx.x;
    const float aa = saved[0], bb = saved[kWkv4Threads], pp = saved[2 * kWkv4Threads];
    const float scale = fmaxf(pp, u + k);
    const Weights weights(u + k - pp);
    const float divisor = weights.before * bb + weights.now;
    const float y = (weights.before * aa + weights.now * v) / divisor, q = gy / divisor;
    if constexpr (kWithResults) {
      const float through = expf(k + adjoint.pp + adjoint.rest);
      const float own_v = q * weights.now, own_k = own_v * (v - y);
      store_element<kType>(p.gv, at, own_v + through * adjoint.aa);
      store_element<kType>(p.gk, at, own_k + through * (adjoint.aa * v + adjoint.bb));
      gu += own_k;
      gw += expf(step + adjoint.pp + pp + adjoint.rest) * (adjoint.aa * aa + adjoint.bb * bb);
    }
    adjoint.add(step, -scale, q, -q * y);
  }
};

// What it computes: what every segment but the first adds to the adjoints of the sums before it.
// What a thread owns: one channel of one segment of one batch row.
// What it gave up: a second pass over the segment, for running all segments at the same time.
template <DType kType>
__global__ void __launch_bounds__(kWkv4Threads, 6)
    wkv4_adjoint_kernel(const __grid_constant__ Wkv4Backward p, Segments segments,
                        ChannelRows summaries) {
  DYNAMIC_SHARED(base);
  Wkv4BackwardThread<kType, false> thread(p, segments, base);
  if (thread.place.segment == 0) return;
  thread.walk();
  if (!thread.place.exists) return;
  const int64_t tokens = thread.place.end - thread.place.begin;
  thread.adjoint.decay += thread.step * static_cast<float>(tokens);
  summaries.store(thread.place.row, thread.place.segment, thread.place.channel, thread.adjoint);
}

// What it computes: the adjoints after every segment, in place of what the segments add.
// What a thread owns: one channel of one batch row.
// What it gave up: parallelism over segments; they are few.
static __global__ void __launch_bounds__(kWkv4Threads)
    wkv4_suffix_kernel(const __grid_constant__ Wkv4Backward p, Segments segments,
                       ChannelRows summaries) {
  const Wkv4Place place(p, {1, p.time});
  if (!place.exists) return;
  Stretch adjoint = Stretch::empty();
  for (int64_t n = segments.count - 1; n >= 0; --n) {
    const Stretch after = adjoint;
    if (n > 0) adjoint = summaries.load(place.row, n, place.channel).after(after);
    summaries.store(place.row, n, place.channel, after);
  }
}

// What it computes: gk, gv, the gradient of the initial state, gw and gu per segment.
// What a thread owns: one channel of one segment of one batch row, from the adjoints in `ends`.
// What it gave up: reading y back, and 16-byte stores.
template <DType kType>
__global__ void __launch_bounds__(kWkv4Threads, 6)
    wkv4_backward_kernel(const __grid_constant__ Wkv4Backward p, Segments segments,
                         ChannelRows ends, float* gw, float* gu) {
  DYNAMIC_SHARED(base);
  Wkv4BackwardThread<kType, true> thread(p, segments, base);
  const Wkv4Place& place = thread.place;
  if (place.exists && ends.base != nullptr) {
    thread.adjoint = ends.load(place.row, place.segment, place.channel);
  }
  thread.walk();
  if (!place.exists) return;
  const int64_t at = (place.segment * p.batch + place.row) * p.width + place.channel;
  gw[at] = thread.step * thread.gw;
  gu[at] = thread.gu;
  if (place.segment > 0) return;
  const Stretch start = thread.kept.load(place.row, 0, place.channel);
  const float factor = expf(thread.adjoint.pp + start.pp + thread.adjoint.rest);
  const float gaa = thread.adjoint.aa * factor, gbb = thread.adjoint.bb * factor;
  const ChannelRows gstate{static_cast<float*>(p.gstate), 1, 3, p.width};
  const float gpp = start.aa * gaa + start.bb * gbb;
  gstate.store(place.row, 0, place.channel, {gaa, gbb, gpp, 0.0f, 0.0f});
}

// What it computes: the sums over segments of gw and gu, [segments, B, A] each.
// What a thread owns: one element of both.
// What it gave up: parallelism over segments; they are few, and their order is fixed.
static __global__ void __launch_bounds__(kWkv4Threads)
    wkv4_totals_kernel(const float* gw_parts, const float* gu_parts, int64_t segments,
                       int64_t count, float* gw, float* gu) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWkv4Threads + threadIdx.x;
  if (index >= count) return;
  float w = 0.0f, u = 0.0f;
  for (int64_t n = 0; n < segments; ++n) {
    w += gw_parts[n * count + index];
    u += gu_parts[n * count + index];
  }
  gw[index] = w;
  gu[index] = u;
}

}  // namespace rwkv
