// Host side of the kernels that scan over tokens. An operator describes them in a class `Scans`:
//
//   Forward<Tile>, States<Tile> (Forward without y), Backward<Tile>    its blocks
//   kMostWarps                   of a block with heads larger than 64
//   results(p), totals(p)        the gradients per token and the ones summed over tokens, in the
//                                order in which the backward block numbers them
//   kResultOfW                   the number among results(p) of gw
//
// and the replay kernel's parameters in replay_params(p).
#pragma once

#include "backward_scan.cuh"
#include "forward_scan.cuh"
#include "ranges.cuh"
#include "tile_choice.cuh"

namespace rwkv {

template <class Block> int scan_shared_bytes(DType dtype) {
  return typename Block::Shared(nullptr, dtype).bytes;
}

template <class Scans, class Params>
int launch_scan_forward(const Params& p, const LaunchOptions& options, void* stream) {
  const auto run = [&]<class TileType>() {
    using Block = typename Scans::template Forward<TileType>;
    return launch(scan_forward_kernel<Block>, p.batch * p.heads * TileType::kSlices,
                  TileType::kThreads, scan_shared_bytes<Block>(p.dtype), stream, p);
  };
  return with_tile<Scans::kMostWarps, Scans::template Forward>(p, options.split, run, kUnsupported);
}

// A backward pass with one kind of tile.
template <class Scans, class TileType> class ScanBackwardPass {
 public:
  using Backward = typename Scans::template Backward<TileType>;
  using Params = typename Backward::Params;

  ScanBackwardPass(const Params& p, const LaunchOptions& options)
      : p_(p), memory_(p, options, Backward::kResults, Backward::kTotals) {}

  int64_t floats() const { return memory_.floats(); }

  int run(float* memory, void* stream) const {
    const auto replay = [&](const auto&... states) { return replay_range(states..., stream); };
    const auto run = [&](const auto&... states) { return run_range(states..., memory, stream); };
    const int error = memory_.for_ranges(p_.checkpoints, memory, replay, run);
    return error != 0 ? error : memory_.add_totals(memory, Scans::totals(p_).data(), stream);
  }

 private:
  // The replay kernel works on all checkpoint intervals at the same time, so that the large tile
  // finds enough blocks whatever the backward kernel's.
  using ReplayTile = FullTile<TileType::kN, Scans::kMostWarps>;
  static_assert(ReplayTile::kChunk == TileType::kChunk);

  // states: before every chunk
  int run_range(const TokenRange& range, const StatesAt<const float*>& states, float* memory,
                void* stream) const {
    const int error = launch(
        scan_backward_kernel<Backward>, p_.batch * p_.heads * TileType::kSlices, TileType::kThreads,
        scan_shared_bytes<Backward>(p_.dtype), stream, p_, range, states, memory_.slices(memory));
    if (error != 0) return error;
    return memory_.add_results(range, memory, Scans::results(p_).data(), Scans::kResultOfW,
                               stream);
  }

  int replay_range(const TokenRange& range, const StatesAt<const float*>& from,
                   const StatesAt<float*>& to, void* stream) const {
    using States = typename Scans::template States<ReplayTile>;
    const int64_t segments = ceil_div(range.end - range.begin, from.every);
    return launch(scan_replay_kernel<States>, p_.batch * p_.heads * ReplayTile::kSlices * segments,
                  ReplayTile::kThreads, scan_shared_bytes<States>(p_.dtype), stream,
                  replay_params(p_), range, from, to);
  }

  const Params& p_;
  const BackwardMemory<TileType> memory_;
};

}  // namespace rwkv
