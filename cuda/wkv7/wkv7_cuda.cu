// CUDA kernels of WKV-7: picks a tile, launches, reports.
#include "wkv7_cuda.h"

#include "../common/ranges.cuh"
#include "../common/tile_choice.cuh"
#include "wkv7_backward.cuh"
#include "wkv7_forward.cuh"

namespace rwkv {
namespace {

// Five sums over values per token leave shared memory for no more.
constexpr int kWkv7Warps = 4;

// A backward pass with one kind of tile.
template <class TileType> class Wkv7BackwardPass {
 public:
  Wkv7BackwardPass(const Wkv7Backward& p, const LaunchOptions& options)
      : p_(p), memory_(p, options, kWkv7Sums, 0) {}

  int64_t floats() const { return memory_.floats(); }

  int run(float* memory, void* stream) const {
    if (p_.kept > 1 && p_.keep_every % TileType::kChunk != 0) return kUnsupported;
    return memory_.for_ranges(
        [&](const TokenRange& range) { return run_range(range, memory, stream); });
  }

 private:
  using ReplayTile = FullTile<TileType::kN, kWkv7Warps>;
  static_assert(ReplayTile::kChunk == TileType::kChunk);

  int run_range(const TokenRange& range, float* memory, void* stream) const {
    StatesAt<const float*> states = memory_.kept_states(p_.checkpoints);
    if (memory_.replays()) {
      const StatesAt<float*> to = memory_.chunk_states(memory, range);
      const int error = replay(range, states, to, stream);
      if (error != 0) return error;
      states = {to.base, to.every, to.count, to.first};
    }
    const Wkv7BackwardShared<TileType> shared(nullptr, p_.dtype);
    const int error =
        launch(wkv7_backward_kernel<TileType>, p_.batch * p_.heads * TileType::kSlices,
               TileType::kThreads, shared.bytes, stream, p_, range, states, memory_.slices(memory));
    void* const results[] = {p_.gr, p_.gk, p_.ga, p_.gb, p_.gw};
    return error != 0 ? error : memory_.add_results(range, memory, results, kSumW, stream);
  }

  int replay(const TokenRange& range, const StatesAt<const float*>& from,
             const StatesAt<float*>& to, void* stream) const {
    Wkv7Forward forward{};
    static_cast<HeadSizes&>(forward) = p_;
    forward.k = p_.k, forward.v = p_.v, forward.a = p_.a, forward.b = p_.b;
    forward.w = p_.w, forward.reset = p_.reset;
    const int64_t segments = ceil_div(range.end - range.begin, from.every);
    const Wkv7ForwardShared<ReplayTile> shared(nullptr, p_.dtype);
    return launch(wkv7_replay_kernel<ReplayTile>,
                  p_.batch * p_.heads * ReplayTile::kSlices * segments, ReplayTile::kThreads,
                  shared.bytes, stream, forward, range, from, to);
  }

  const Wkv7Backward& p_;
  const BackwardMemory<TileType> memory_;
};

}  // namespace
}  // namespace rwkv

int64_t rwkv_wkv7_forward_floats(const rwkv::Wkv7Forward&, const rwkv::LaunchOptions&) {
  return 0;
}

int rwkv_wkv7_forward_cuda(const rwkv::Wkv7Forward& params, const rwkv::LaunchOptions& options,
                           float*, void* stream) {
  const auto run = [&]<class TileType>() {
    const int64_t blocks = params.batch * params.heads * TileType::kSlices;
    const rwkv::Wkv7ForwardShared<TileType> shared(nullptr, params.dtype);
    return rwkv::launch(rwkv::wkv7_forward_kernel<TileType>, blocks, TileType::kThreads,
                        shared.bytes, stream, params);
  };
  return rwkv::with_tile<rwkv::kWkv7Warps, rwkv::Wkv7ForwardShared>(params, options.split, run,
                                                                    rwkv::kUnsupported);
}

int64_t rwkv_wkv7_backward_floats(const rwkv::Wkv7Backward& params,
                                  const rwkv::LaunchOptions& options) {
  const auto run = [&]<class TileType>() {
    return rwkv::Wkv7BackwardPass<TileType>(params, options).floats();
  };
  return rwkv::with_tile<rwkv::kWkv7Warps, rwkv::Wkv7BackwardShared>(params, options.split, run,
                                                                     int64_t{0});
}

int rwkv_wkv7_backward_cuda(const rwkv::Wkv7Backward& params, const rwkv::LaunchOptions& options,
                            float* memory, void* stream) {
  const auto run = [&]<class TileType>() {
    return rwkv::Wkv7BackwardPass<TileType>(params, options).run(memory, stream);
  };
  return rwkv::with_tile<rwkv::kWkv7Warps, rwkv::Wkv7BackwardShared>(params, options.split, run,
                                                                     rwkv::kUnsupported);
}
