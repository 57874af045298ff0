// Host side of the chunked kernels of RWKV-7.
#pragma once

#include "../common/chunk_choice.cuh"
#include "../common/ranges.cuh"
#include "wkv7_chunk_backward.cuh"
#include "wkv7_chunk_forward.cuh"

namespace rwkv {

inline int launch_wkv7_chunk_forward(const Wkv7Forward& p, void* stream) {
  return launch(wkv7_chunk_forward_kernel, p.batch * p.heads, ChunkTile::kThreads,
                Wkv7ChunkForwardShared(nullptr).bytes, stream, p);
}

class Wkv7ChunkBackwardPass {
 public:
  Wkv7ChunkBackwardPass(const Wkv7Backward& p, const LaunchOptions& options)
      : p_(p), memory_(p, options, 0, 0) {}

  int64_t floats() const { return memory_.floats(); }

  int run(float* memory, void* stream) const {
    if (p_.kept > 1 && p_.keep_every % ChunkTile::kChunk != 0) return kUnsupported;
    return memory_.for_ranges(
        [&](const TokenRange& range) { return run_range(range, memory, stream); });
  }

 private:
  int run_range(const TokenRange& range, float* memory, void* stream) const {
    StatesAt<const float*> states = memory_.kept_states(p_.checkpoints);
    if (memory_.replays()) {
      const StatesAt<float*> to = memory_.chunk_states(memory, range);
      const int error = replay(range, states, to, stream);
      if (error != 0) return error;
      states = {to.base, to.every, to.count, to.first};
    }
    return launch(wkv7_chunk_backward_kernel, p_.batch * p_.heads, ChunkTile::kThreads,
                  Wkv7ChunkBackwardShared(nullptr).bytes, stream, p_, range, states);
  }

  int replay(const TokenRange& range, const StatesAt<const float*>& from,
             const StatesAt<float*>& to, void* stream) const {
    Wkv7Forward forward{};
    static_cast<HeadSizes&>(forward) = p_;
    forward.k = p_.k, forward.v = p_.v, forward.a = p_.a, forward.b = p_.b;
    forward.w = p_.w, forward.reset = p_.reset;
    const int64_t segments = ceil_div(range.end - range.begin, from.every);
    return launch(wkv7_chunk_replay_kernel, p_.batch * p_.heads * segments,
                  ChunkTile::kThreads, Wkv7ChunkForwardShared(nullptr).bytes, stream, forward,
                  range, from, to);
  }

  const Wkv7Backward& p_;
  const BackwardMemory<ChunkTile> memory_;
};

}  // namespace rwkv
