// The launchers of an operator with a matrix state: by chunks where those serve the call, else by
// scans. Chunks: as chunk_launch.cuh asks for; Scans: as scan_launch.cuh does.
#pragma once

#include "../gpu_scan/scan_launch.cuh"
#include "chunk_launch.cuh"

namespace rwkv {

template <class Chunks, class Scans> struct ChunksOrScans {
  using ForwardParams = typename Chunks::Forward::Params;
  using BackwardParams = typename Chunks::Backward::Params;

  // Floats of memory that `forward` works in; 0 if it needs none.
  static int64_t forward_floats(const ForwardParams& p, const LaunchOptions& options) {
    return ChunkForwardPass<Chunks>(p, options).floats();
  }
  static int forward(const ForwardParams& p, const LaunchOptions& options, float* memory,
                     void* stream) {
    const ChunkForwardPass<Chunks> by_chunks(p, options);
    if (by_chunks.serves()) return by_chunks.run(memory, stream);
    if (by_chunks_alone(options.split)) return kUnsupported;
    return launch_scan_forward<Scans>(p, options, stream);
  }

  // Floats of memory that `backward` works in; 0 if it needs none.
  static int64_t backward_floats(const BackwardParams& p, const LaunchOptions& options) {
    const auto run = [&]<class Pass>() { return Pass(p, options).floats(); };
    return with_backward_pass(p, options, run, int64_t{0});
  }
  static int backward(const BackwardParams& p, const LaunchOptions& options, float* memory,
                      void* stream) {
    const auto run = [&]<class Pass>() { return Pass(p, options).run(memory, stream); };
    return with_backward_pass(p, options, run, kUnsupported);
  }

 private:
  // run.template operator()<Pass>() with the class of the backward pass that serves the call.
  template <typename Result, typename Run>
  static Result with_backward_pass(const BackwardParams& p, const LaunchOptions& options, Run run,
                                   Result otherwise) {
    using ByChunks = ChunkBackwardPass<Chunks>;
    if (ByChunks::serves(p, options)) return run.template operator()<ByChunks>();
    if (by_chunks_alone(options.split)) return otherwise;
    const auto scan = [&]<class TileType>() -> Result {
      return run.template operator()<ScanBackwardPass<Scans, TileType>>();
    };
    return with_tile<Scans::kMostWarps, Scans::template Backward>(p, options.split, scan,
                                                                  otherwise);
  }
};

}  // namespace rwkv
