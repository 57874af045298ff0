// Forward pass of RWKV-4. Per channel, with step = -exp(w), reading the sums before token t:
//
//   y = (a + exp(u + k) v) / (b + exp(u + k))
//   a <- exp(step) a + exp(k) v      b <- exp(step) b + exp(k)
#pragma once

#include "wkv4_summary.cuh"

namespace rwkv {

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
