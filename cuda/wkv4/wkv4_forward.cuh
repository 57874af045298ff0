// Forward pass of RWKV-4. Per channel, with step = -exp(w), reading the sums before token t:
//
//   y = (a + exp(u + k) v) / (b + exp(u + k))
//   a <- exp(step) a + exp(k) v      b <- exp(step) b + exp(k)
#pragma once

#include "wkv4_channels.cuh"

namespace rwkv {

template <DType kType> struct Wkv4ForwardShared {
  FetchedChunks<kType> k, v;
  int bytes;

  __host__ __device__ explicit Wkv4ForwardShared(unsigned char* base) {
    Pieces pieces(base);
    for (auto* fetched : {&k, &v}) fetched->take(pieces);
    bytes = pieces.used();
  }
};

// Calls visit(at, starts, k, v) for the tokens of the thread's segment, in order: the channel's
// index in tensors [B, T, A], and whether a document starts; chunk(t) before the first of every
// kWkv4Chunk.
template <DType kType, typename Chunk, typename Visit>
__device__ __forceinline__ void walk_tokens(const Wkv4Forward& p, const Wkv4Place& place,
                                            unsigned char* base, Chunk chunk, Visit visit) {
  const Wkv4ForwardShared<kType> shared(base);
  const auto tokens_at = [&](int64_t t) {
    return static_cast<int>(place.end - t < kWkv4Chunk ? place.end - t : kWkv4Chunk);
  };
  const auto fetch = [&](int64_t t, int buffer) {
    shared.k.fetch(buffer, p.k, p, place, t, tokens_at(t));
    shared.v.fetch(buffer, p.v, p, place, t, tokens_at(t));
    commit_copies();
  };
  fetch(place.begin, 0);
  int buffer = 0;
  for (int64_t t = place.begin; t < place.end; t += kWkv4Chunk, buffer ^= 1) {
    wait_for_copies();
    __syncthreads();
    // The other buffer was read before that barrier.
    if (t + kWkv4Chunk < place.end) fetch(t + kWkv4Chunk, buffer ^ 1);
    const int tokens = tokens_at(t);
    const unsigned starts = document_starts(p.reset, p, place, t, tokens);
    if (!place.exists) continue;
    chunk(t);
    int64_t at = place.token(p, t);
#pragma unroll 4
    for (int n = 0; n < tokens; ++n, at += p.width) {
      visit(at, (starts >> n & 1) != 0, shared.k.own(buffer, n), shared.v.own(buffer, n));
    }
  }
}

// What it computes: the sums of every segment but the last, from an empty state, and their decay.
// What a thread owns: one channel of one segment of one batch row.
// What it gave up: a second reading of k and v, for running all segments at the same time.
template <DType kType>
__global__ void __launch_bounds__(kWkv4Threads, 6)
    wkv4_summary_kernel(const __grid_constant__ Wkv4Forward p, Segments segments,
                        ChannelRows summaries) {
  DYNAMIC_SHARED(base);
  const Wkv4Place place(p, segments);
  if (place.segment == segments.count - 1) return;
  const float step =
      place.exists ? wkv4_log_decay(static_cast<const float*>(p.w)[place.channel]) : 0.0f;
  Stretch sums = Stretch::empty();
  walk_tokens<kType>(
      p, place, base, [](int64_t) {},
      [&](int64_t, bool starts, float k, float v) {
        if (starts) sums.forget();
        sums.add(step, k, v, 1.0f);
      });
  sums.decay += step * static_cast<float>(place.end - place.begin);
  if (place.exists) summaries.store(place.row, place.segment, place.channel, sums);
}

// What it computes: the state at the start of every segment, in place of the segments' sums.
// What a thread owns: one channel of one batch row.
// What it gave up: parallelism over segments; they are few.
static __global__ void __launch_bounds__(kWkv4Threads)
    wkv4_prefix_kernel(const __grid_constant__ Wkv4Forward p, Segments segments,
                       ChannelRows summaries, ChannelRows state) {
  const Wkv4Place place(p, {1, p.time});
  if (!place.exists) return;
  Stretch sums = state.base == nullptr ? Stretch::empty() : state.load(place.row, 0, place.channel);
  for (int64_t n = 0; n < segments.count; ++n) {
    const Stretch before = sums;
    if (n + 1 < segments.count) {
      sums = summaries.load(place.row, n, place.channel).after(before);
    }
    summaries.store(place.row, n, place.channel, before);
  }
}

// What it computes: y, the final state and, to p.checkpoints, one state per checkpoint interval.
// What a thread owns: one channel of one segment of one batch row, from the state in `starts`.
// What it gave up: 16-byte stores of y; the rows of a block fill whole sectors all the same.
template <DType kType>
__global__ void __launch_bounds__(kWkv4Threads, 6)
    wkv4_forward_kernel(const __grid_constant__ Wkv4Forward p, Segments segments,
                        ChannelRows starts) {
  DYNAMIC_SHARED(base);
  const Wkv4Place place(p, segments);
  const ChannelRows kept{static_cast<float*>(p.checkpoints), p.kept, 3, p.width};
  float step = 0.0f, u = 0.0f;
  Stretch sums = Stretch::empty();
  if (place.exists) {
    step = wkv4_log_decay(static_cast<const float*>(p.w)[place.channel]);
    u = static_cast<const float*>(p.u)[place.channel];
    if (starts.base != nullptr) sums = starts.load(place.row, place.segment, place.channel);
  }
  walk_tokens<kType>(
      p, place, base,
      [&](int64_t t) {
        sums.fold();
        if (kept.base == nullptr || t % p.checkpoint_interval != 0) return;
        kept.store(place.row, t / p.checkpoint_interval, place.channel, sums);
      },
      [&](int64_t at, bool starts, float k, float v) {
        if (starts) sums.forget();
        const Weights weights(u + k - sums.pp - sums.rest);
        const float y = (weights.before * sums.aa + weights.now * v) /
                        (weights.before * sums.bb + weights.now);
        store_element<kType>(p.y, at, y);
        sums.add(step, k, v, 1.0f);
      });
  if (place.exists && place.end == p.time) {
    const ChannelRows final_state{static_cast<float*>(p.final_state), 1, 3, p.width};
    final_state.store(place.row, 0, place.channel, sums);
  }
}

}  // namespace rwkv
