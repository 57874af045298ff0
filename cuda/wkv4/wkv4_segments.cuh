// Into how many segments the launchers of RWKV-4 cut the tokens, and what that takes.
#pragma once

#include "../common/params/launch_options.h"
#include "wkv4_channels.cuh"

namespace rwkv {

// Threads of a multiprocessor from which on a second reading of the tokens, which cutting them
// takes, costs more than the waiting that it would fill.
constexpr int64_t kThreadsEnough = 96;
// Threads that it should have where they are cut, to hide the time that loads take.
constexpr int64_t kThreadsWanted = 512;
// Fewer tokens in a segment cost more than they gain.
constexpr int64_t kShortestSegment = 64;

inline Segments choose_segments(const Wkv4Sizes& p, const LaunchOptions& options) {
  const bool wide = options.split == kSplitWide;
  const bool enough = p.batch * p.width >= multiprocessors() * kThreadsEnough;
  if (options.split == kSplitFull || (enough && !wide)) return {1, p.time};
  const int64_t shortest = wide ? kWkv4Chunk : kShortestSegment;
  int64_t count = ceil_div(p.time, shortest);
  if (!wide) {
    const int64_t wanted = ceil_div(multiprocessors() * kThreadsWanted, p.batch * p.width);
    count = wanted < count ? wanted : count;
  }
  const int64_t tokens = ceil_div(ceil_div(p.time, count), kWkv4Chunk) * kWkv4Chunk;
  return {ceil_div(p.time, tokens), tokens};
}

inline int64_t blocks_for(const Wkv4Sizes& p, int64_t segments) {
  return p.batch * segments * ceil_div(p.width, kWkv4Threads);
}

// run.template operator()<kType>() for the element type of the call.
template <typename Run> int with_type(DType dtype, Run run) {
  switch (dtype) {
    case DType::kFloat: return run.template operator()<DType::kFloat>();
    case DType::kHalf: return run.template operator()<DType::kHalf>();
    case DType::kBFloat16: return run.template operator()<DType::kBFloat16>();
    default: return kUnsupported;
  }
}

}  // namespace rwkv
