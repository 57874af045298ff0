// What the CUDA launchers may be asked for, and what they answer; plain C++, no torch, no CUDA.
#pragma once

#include <cstdint>

namespace rwkv {

// How the work is split: as suits the call, in scans over tokens with few large blocks or with many
// small ones, in chunks of tokens on tensor cores, or in such chunks with segments of the time axis
// side by side.
enum {
  kSplitAuto = 0,
  kSplitFull = 1,
  kSplitWide = 2,
  kSplitChunks = 3,
  kSplitSegments = 4,
};

struct LaunchOptions {
  int64_t split = kSplitAuto;
  // Working memory of a backward pass: it takes the tokens in as many ranges as it needs to stay
  // below, but no fewer tokens at a time than lie between two kept states. 256 MiB keep a large
  // card busy.
  int64_t most_floats = int64_t{64} << 20;
};

// A launcher returns 0, CUDA's (positive) number of an error, or this for a call that no kernel
// serves: head size not 32, 64, 128 or 256; fp64; w not fp32; its gradient neither fp32 nor of the
// inputs' type; checkpoint_interval not a multiple of
// 16; a card whose blocks cannot have the shared memory.
constexpr int kUnsupported = -1;

}  // namespace rwkv
