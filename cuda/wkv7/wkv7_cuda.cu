// CUDA kernels of WKV-7: picks a tile, launches, reports.
#include "wkv7_cuda.h"

#include "../common/gpu_chunks/chunk_launch.cuh"
#include "../common/gpu_scan/tile_choice.cuh"
#include "wkv7_backward.cuh"
#include "wkv7_chunk_backward.cuh"
#include "wkv7_chunk_forward.cuh"
#include "wkv7_forward.cuh"

namespace rwkv {

// What the replay kernels need of a backward pass.
inline Wkv7Forward replay_params(const Wkv7Backward& p) {
  Wkv7Forward forward{};
  static_cast<HeadSizes&>(forward) = p;
  forward.k = p.k, forward.v = p.v, forward.a = p.a, forward.b = p.b;
  forward.w = p.w, forward.reset = p.reset;
  return forward;
}

namespace {

struct Wkv7ChunkBlocks {
  using Forward = Wkv7ChunkForwardBlock<true>;
  using States = Wkv7ChunkForwardBlock<false>;
  using Backward = Wkv7ChunkBackwardBlock;
  using Gradients = Wkv7ChunkChainBlock;
};

// Five sums over values per token leave shared memory for no more.
constexpr int kWkv7Warps = 4;

// A backward pass with one kind of tile.
template <class TileType> class Wkv7BackwardPass {
 public:
  Wkv7BackwardPass(const Wkv7Backward& p, const LaunchOptions& options)
      : p_(p), memory_(p, options, kWkv7Sums, 0) {}

  int64_t floats() const { return memory_.floats(); }

  int run(float* memory, void* stream) const {
    const auto replay = [&](const auto&... states) { return replay_range(states..., stream); };
    const auto run = [&](const auto&... states) { return run_range(states..., memory, stream); };
    return memory_.for_ranges(p_.checkpoints, memory, replay, run);
  }

 private:
  using ReplayTile = FullTile<TileType::kN, kWkv7Warps>;
  static_assert(ReplayTile::kChunk == TileType::kChunk);

  // states: before every chunk
  int run_range(const TokenRange& range, const StatesAt<const float*>& states, float* memory,
                void* stream) const {
    const Wkv7BackwardShared<TileType> shared(nullptr, p_.dtype);
    const int error =
        launch(wkv7_backward_kernel<TileType>, p_.batch * p_.heads * TileType::kSlices,
               TileType::kThreads, shared.bytes, stream, p_, range, states, memory_.slices(memory));
    void* const results[] = {p_.gr, p_.gk, p_.ga, p_.gb, p_.gw};
    return error != 0 ? error : memory_.add_results(range, memory, results, kWkv7SumW, stream);
  }

  int replay_range(const TokenRange& range, const StatesAt<const float*>& from,
                   const StatesAt<float*>& to, void* stream) const {
    const int64_t segments = ceil_div(range.end - range.begin, from.every);
    const Wkv7ForwardShared<ReplayTile> shared(nullptr, p_.dtype);
    return launch(wkv7_replay_kernel<ReplayTile>,
                  p_.batch * p_.heads * ReplayTile::kSlices * segments, ReplayTile::kThreads,
                  shared.bytes, stream, replay_params(p_), range, from, to);
  }

  const Wkv7Backward& p_;
  const BackwardMemory<TileType> memory_;
};

// run.template operator()<Pass>() with the class of the backward pass that serves the call.
template <typename Result, typename Run>
Result with_backward_pass(const Wkv7Backward& p, const LaunchOptions& options, Run run,
                          Result otherwise) {
  using ByChunks = ChunkBackwardPass<Wkv7ChunkBlocks>;
  if (ByChunks::serves(p, options)) return run.template operator()<ByChunks>();
  if (by_chunks_alone(options.split)) return otherwise;
  const auto scan = [&]<class TileType>() -> Result {
    return run.template operator()<Wkv7BackwardPass<TileType>>();
  };
  return with_tile<kWkv7Warps, Wkv7BackwardShared>(p, options.split, scan, otherwise);
}

int launch_forward_scan(const Wkv7Forward& p, const LaunchOptions& options, void* stream) {
  const auto run = [&]<class TileType>() {
    const int64_t blocks = p.batch * p.heads * TileType::kSlices;
    const Wkv7ForwardShared<TileType> shared(nullptr, p.dtype);
    return launch(wkv7_forward_kernel<TileType>, blocks, TileType::kThreads, shared.bytes, stream,
                  p);
  };
  return with_tile<kWkv7Warps, Wkv7ForwardShared>(p, options.split, run, kUnsupported);
}

}  // namespace
}  // namespace rwkv

int64_t rwkv_wkv7_forward_floats(const rwkv::Wkv7Forward& params,
                                 const rwkv::LaunchOptions& options) {
  return rwkv::ChunkForwardPass<rwkv::Wkv7ChunkBlocks>(params, options).floats();
}

int64_t rwkv_wkv7_backward_floats(const rwkv::Wkv7Backward& params,
                                  const rwkv::LaunchOptions& options) {
  const auto run = [&]<class Pass>() { return Pass(params, options).floats(); };
  return rwkv::with_backward_pass(params, options, run, int64_t{0});
}

int rwkv_wkv7_forward_cuda(const rwkv::Wkv7Forward& params, const rwkv::LaunchOptions& options,
                           float* memory, void* stream) {
  const rwkv::ChunkForwardPass<rwkv::Wkv7ChunkBlocks> by_chunks(params, options);
  if (by_chunks.serves()) return by_chunks.run(memory, stream);
  if (rwkv::by_chunks_alone(options.split)) return rwkv::kUnsupported;
  return rwkv::launch_forward_scan(params, options, stream);
}

int rwkv_wkv7_backward_cuda(const rwkv::Wkv7Backward& params, const rwkv::LaunchOptions& options,
                            float* memory, void* stream) {
  const auto run = [&]<class Pass>() { return Pass(params, options).run(memory, stream); };
  return rwkv::with_backward_pass(params, options, run, rwkv::kUnsupported);
}
