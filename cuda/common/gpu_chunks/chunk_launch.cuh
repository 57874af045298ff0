// Host side of the kernels that go by chunks of tokens. An operator names its blocks in a class:
// Forward, States (Forward without y), Backward, and Gradients (of the gradients' chain).
#pragma once

#include "../gpu_scan/ranges.cuh"
#include "chunk_chain.cuh"
#include "chunk_choice.cuh"

namespace rwkv {

template <class Block> int chunk_shared_bytes() { return typename Block::Shared(nullptr).bytes; }
template <class Block> int chain_shared_bytes() {
  return kChainStages * chunk_shared_bytes<Block>();
}

// A forward pass.
template <class Blocks> class ChunkForwardPass {
 public:
  using Forward = typename Blocks::Forward;
  using States = typename Blocks::States;
  using Params = typename Forward::Params;

  ChunkForwardPass(const Params& p, const LaunchOptions& options)
      : p_(p),
        split_(split_in_chunks(p, options, Direction::kForward, chunk_shared_bytes<Forward>(),
                               chain_shared_bytes<States>())) {}

  // Whether it serves the call.
  bool serves() const { return split_ != kUnsupported; }
  // Without states for the backward pass there must be some for the segments.
  int64_t floats() const {
    const bool needs = split_ == kSplitSegments && p_.kept == 0;
    return needs ? p_.batch * p_.heads * own_segments().count * p_.size * p_.size : 0;
  }

  int run(float* memory, void* stream) const {
    const int64_t heads = p_.batch * p_.heads;
    if (split_ == kSplitChunks) {
      return launch(chunk_forward_kernel<Forward>, heads, ChunkTile::kThreads,
                    chunk_shared_bytes<Forward>(), stream, p_);
    }
    StatesAt<float*> at{static_cast<float*>(p_.checkpoints), p_.checkpoint_interval, p_.kept, 0};
    if (p_.kept == 0) at = {memory, own_segments().every, own_segments().count, 0};
    if (at.every % ChunkTile::kChunk != 0) return kUnsupported;
    const int error = launch(chunk_state_chain_kernel<States>, heads, kChainThreads,
                             chain_shared_bytes<States>(), stream, p_, at);
    if (error != 0) return error;
    const StatesAt<const float*> from{at.base, at.every, at.count, at.first};
    return launch(chunk_replay_kernel<Forward>, heads * at.count, ChunkTile::kThreads,
                  chunk_shared_bytes<Forward>(), stream, p_, TokenRange{0, p_.time}, from,
                  StatesAt<float*>{});
  }

 private:
  struct Segments {
    int64_t every, count;
  };
  // Enough to fill a card, and however long the sequence is no more.
  Segments own_segments() const {
    constexpr int64_t kShortest = 64, kMost = 64;
    // Segments run side by side in blocks of their own: 64 of them fill a card with few heads, and
    // fewer than 64 tokens would not pay for reading a state.
    const int64_t even = ceil_div(p_.time, kMost * ChunkTile::kChunk) * ChunkTile::kChunk;
    const int64_t every = even < kShortest ? kShortest : even;
    return {every, ceil_div(p_.time, every)};
  }

  const Params& p_;
  const int64_t split_;
};

// A backward pass. The replay kernel's parameters are replay_params(p).
template <class Blocks> class ChunkBackwardPass {
 public:
  using Backward = typename Blocks::Backward;
  using Gradients = typename Blocks::Gradients;
  using States = typename Blocks::States;
  using Params = typename Backward::Params;

  ChunkBackwardPass(const Params& p, const LaunchOptions& options)
      : p_(p), split_(split_of(p, options)),
        memory_(p, options, 0, 0, true, split_ == kSplitSegments) {}

  static bool serves(const Params& p, const LaunchOptions& options) {
    return split_of(p, options) != kUnsupported;
  }
  int64_t floats() const { return memory_.floats(); }

  int run(float* memory, void* stream) const {
    const auto replay = [&](const TokenRange& range, const StatesAt<const float*>& from,
                            const StatesAt<float*>& to) {
      return launch(chunk_replay_kernel<States>, blocks(range, from.every), ChunkTile::kThreads,
                    chunk_shared_bytes<States>(), stream, replay_params(p_), range, from, to);
    };
    const auto run_range = [&](const TokenRange& range, const StatesAt<const float*>& states) {
      return split_ == kSplitChunks ? go_back(range, states, stream)
                                    : go_back_in_segments(range, states, memory, stream);
    };
    return memory_.for_ranges(p_.checkpoints, memory, replay, run_range);
  }

 private:
  static int64_t split_of(const Params& p, const LaunchOptions& options) {
    return split_in_chunks(p, options, Direction::kBackward, chunk_shared_bytes<Backward>(),
                           chain_shared_bytes<Gradients>());
  }
  int64_t blocks(const TokenRange& range, int64_t every) const {
    return p_.batch * p_.heads * ceil_div(range.end - range.begin, every);
  }

  int go_back(const TokenRange& range, const StatesAt<const float*>& states, void* stream) const {
    return launch(chunk_backward_kernel<Backward>, p_.batch * p_.heads, ChunkTile::kThreads,
                  chunk_shared_bytes<Backward>(), stream, p_, range, states);
  }

  int go_back_in_segments(const TokenRange& range, const StatesAt<const float*>& states,
                          float* memory, void* stream) const {
    const StatesAt<float*> to = memory_.gradients(memory, range);
    int error = launch(chunk_gradient_chain_kernel<Gradients>, p_.batch * p_.heads, kChainThreads,
                       chain_shared_bytes<Gradients>(), stream, p_, range, to);
    if (error != 0) return error;
    error =
        launch(chunk_segment_backward_kernel<Backward>, blocks(range, to.every),
               ChunkTile::kThreads, chunk_shared_bytes<Backward>(), stream, p_, range, states, to);
    if constexpr (Backward::kTotals > 0) {
      if (error != 0) return error;
      const StatesAt<const float*> parts{to.base, to.every, to.count, to.first};
      return launch(chunk_add_totals_kernel<Backward::kTotals>, p_.batch * p_.heads, ChunkTile::kN,
                    0, stream, parts, Backward::totals(p_), range.end != p_.time);
    }
    return error;
  }

  const Params& p_;
  const int64_t split_;
  const BackwardMemory<ChunkTile> memory_;
};

}  // namespace rwkv
