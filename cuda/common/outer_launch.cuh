// Host side of the CUDA kernels of RWKV-5 and 6: picks a tile, launches, reports. No torch.
#pragma once

#include "outer_backward.cuh"
#include "outer_forward.cuh"
#include "ranges.cuh"
#include "tile_choice.cuh"

namespace rwkv {

constexpr int kOuterWarps = 8;

template <bool kDecayPerToken>
int launch_outer_forward(const OuterForward& p, const LaunchOptions& options, void* stream) {
  const auto run = [&]<class TileType>() {
    const int64_t blocks = p.batch * p.heads * TileType::kSlices;
    const OuterForwardShared<TileType> shared(nullptr, p.dtype);
    return launch(outer_forward_kernel<TileType, kDecayPerToken>, blocks, TileType::kThreads,
                  shared.bytes, stream, p);
  };
  return with_tile<kOuterWarps, OuterForwardShared>(p, options.split, run, kUnsupported);
}

// A backward pass of RWKV-5 or 6 with one kind of tile.
template <class TileType, bool kDecayPerToken> class OuterBackwardPass {
 public:
  OuterBackwardPass(const OuterBackward& p, const LaunchOptions& options)
      : p_(p), memory_(p, options, kDecayPerToken ? 3 : 2, kDecayPerToken ? 1 : 2) {}

  int64_t floats() const { return memory_.floats(); }

  int run(float* memory, void* stream) const {
    if (p_.kept > 1 && p_.keep_every % TileType::kChunk != 0) return kUnsupported;
    const int error = memory_.for_ranges(
        [&](const TokenRange& range) { return run_range(range, memory, stream); });
    void* const totals[] = {p_.gu, p_.gw};
    return error != 0 ? error : memory_.add_totals(memory, totals, stream);
  }

 private:
  using ReplayTile = FullTile<TileType::kN, kOuterWarps>;
  static_assert(ReplayTile::kChunk == TileType::kChunk);

  int run_range(const TokenRange& range, float* memory, void* stream) const {
    StatesAt<const float*> states = memory_.kept_states(p_.checkpoints);
    if (memory_.replays()) {
      const StatesAt<float*> to = memory_.chunk_states(memory, range);
      const int error = replay(range, states, to, stream);
      if (error != 0) return error;
      states = {to.base, to.every, to.count, to.first};
    }
    const OuterBackwardShared<TileType> shared(nullptr, p_.dtype);
    const int error = launch(outer_backward_kernel<TileType, kDecayPerToken>,
                             p_.batch * p_.heads * TileType::kSlices, TileType::kThreads,
                             shared.bytes, stream, p_, range, states, memory_.slices(memory));
    void* const results[] = {p_.gr, p_.gk, p_.gw};
    return error != 0 ? error : memory_.add_results(range, memory, results, kSumD, stream);
  }

  int replay(const TokenRange& range, const StatesAt<const float*>& from,
             const StatesAt<float*>& to, void* stream) const {
    OuterForward forward{};
    static_cast<HeadSizes&>(forward) = p_;
    forward.k = p_.k, forward.v = p_.v, forward.w = p_.w, forward.reset = p_.reset;
    const int64_t segments = ceil_div(range.end - range.begin, from.every);
    const OuterForwardShared<ReplayTile> shared(nullptr, p_.dtype);
    return launch(outer_replay_kernel<ReplayTile, kDecayPerToken>,
                  p_.batch * p_.heads * ReplayTile::kSlices * segments, ReplayTile::kThreads,
                  shared.bytes, stream, forward, range, from, to);
  }

  const OuterBackward& p_;
  const BackwardMemory<TileType> memory_;
};

// Floats of memory that launch_outer_backward works in; 0 if it needs none.
template <bool kDecayPerToken>
int64_t outer_backward_floats(const OuterBackward& p, const LaunchOptions& options) {
  const auto run = [&]<class TileType>() {
    return OuterBackwardPass<TileType, kDecayPerToken>(p, options).floats();
  };
  return with_tile<kOuterWarps, OuterBackwardShared>(p, options.split, run, int64_t{0});
}

template <bool kDecayPerToken>
int launch_outer_backward(const OuterBackward& p, const LaunchOptions& options, float* memory,
                          void* stream) {
  const auto run = [&]<class TileType>() {
    return OuterBackwardPass<TileType, kDecayPerToken>(p, options).run(memory, stream);
  };
  return with_tile<kOuterWarps, OuterBackwardShared>(p, options.split, run, kUnsupported);
}

}  // namespace rwkv
