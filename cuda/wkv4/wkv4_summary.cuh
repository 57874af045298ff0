// How RWKV-4's kernels walk along the tokens forwards, and what segments of them add up to by
// themselves. Per channel, with step = -exp(w):
//
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

}  // namespace rwkv
