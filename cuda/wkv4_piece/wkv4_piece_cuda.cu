// CUDA kernels of WKV-4's pieces: the sums of segments by the operator's own kernel, joined here.
#include "wkv4_piece_cuda.h"

#include "../wkv4/wkv4_segments.cuh"
#include "../wkv4/wkv4_summary.cuh"

namespace rwkv {
namespace {

// The operator's kernel leaves out the last segment, here one behind the last token.
Segments with_one_behind(const Segments& segments) {
  return {segments.count + 1, segments.tokens};
}

// What it computes: the sums of a whole piece from those of its segments.
// What a thread owns: one channel of one batch row.
// What it gave up: parallelism over segments; they are few.
__global__ void __launch_bounds__(kWkv4Threads)
    wkv4_piece_join_kernel(const __grid_constant__ Wkv4Piece p, ChannelRows summaries,
                           int64_t count) {
  const Wkv4Place place(p, {1, p.time});
  if (!place.exists) return;
  Stretch sums = Stretch::empty();
  for (int64_t n = 0; n < count; ++n) {
    sums = summaries.load(place.row, n, place.channel).after(sums);
  }
  const ChannelRows to{static_cast<float*>(p.sums), 1, 3, p.width};
  to.store(place.row, 0, place.channel, sums);
}

template <DType kType>
int launch_wkv4_piece(const Wkv4Piece& p, const Segments& segments, float* memory, void* stream) {
  Wkv4Forward forward{};
  static_cast<Wkv4Sizes&>(forward) = p;
  forward.w = p.w, forward.k = p.k, forward.v = p.v, forward.reset = p.reset;
  const Segments all = with_one_behind(segments);
  const ChannelRows summaries{memory, all.count, 4, p.width};
  const int bytes = Wkv4ForwardShared<kType>(nullptr).bytes;
  const int error = launch(wkv4_summary_kernel<kType>, blocks_for(p, all.count), kWkv4Threads,
                           bytes, stream, forward, all, summaries);
  if (error != 0) return error;
  return launch(wkv4_piece_join_kernel, blocks_for(p, 1), kWkv4Threads, 0, stream, p, summaries,
                segments.count);
}

}  // namespace
}  // namespace rwkv

int64_t rwkv_wkv4_piece_run_floats(const rwkv::Wkv4Piece& params,
                                   const rwkv::LaunchOptions& options) {
  const rwkv::Segments segments = rwkv::choose_segments(params, options);
  return rwkv::with_one_behind(segments).count * 4 * params.batch * params.width;
}

int rwkv_wkv4_piece_run_cuda(const rwkv::Wkv4Piece& params, const rwkv::LaunchOptions& options,
                             float* memory, void* stream) {
  return rwkv::with_type(params.dtype, [&]<rwkv::DType kType>() {
    return rwkv::launch_wkv4_piece<kType>(params, rwkv::choose_segments(params, options), memory,
                                          stream);
  });
}
