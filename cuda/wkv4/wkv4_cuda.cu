// CUDA kernels of WKV-4: cuts the tokens into segments, launches, reports.
#include "wkv4_cuda.h"

#include "wkv4_backward.cuh"
#include "wkv4_forward.cuh"
#include "wkv4_segments.cuh"

namespace rwkv {
namespace {

int64_t summary_floats(const Wkv4Sizes& p, const Segments& segments) {
  return segments.count == 1 ? 0 : segments.count * 4 * p.batch * p.width;
}

ChannelRows summaries_in(float* memory, const Wkv4Sizes& p, const Segments& segments) {
  return {segments.count == 1 ? nullptr : memory, segments.count, 4, p.width};
}

template <DType kType>
int launch_forward(const Wkv4Forward& p, const Segments& segments, float* memory, void* stream) {
  const int bytes = Wkv4ForwardShared<kType>(nullptr).bytes;
  const int64_t blocks = blocks_for(p, segments.count);
  const ChannelRows state{static_cast<float*>(const_cast<void*>(p.state)), 1, 3, p.width};
  if (segments.count == 1) {
    return launch(wkv4_forward_kernel<kType>, blocks, kWkv4Threads, bytes, stream, p, segments,
                  state);
  }
  const ChannelRows summaries = summaries_in(memory, p, segments);
  int error = launch(wkv4_summary_kernel<kType>, blocks, kWkv4Threads, bytes, stream, p, segments,
                     summaries);
  if (error != 0) return error;
  error = launch(wkv4_prefix_kernel, blocks_for(p, 1), kWkv4Threads, 0, stream, p, segments,
                 summaries, state);
  if (error != 0) return error;
  return launch(wkv4_forward_kernel<kType>, blocks, kWkv4Threads, bytes, stream, p, segments,
                summaries);
}

template <DType kType>
int launch_backward(const Wkv4Backward& p, const Segments& segments, float* memory,
                    void* stream) {
  const int bytes = Wkv4BackwardShared<kType>(nullptr).bytes;
  const int64_t blocks = blocks_for(p, segments.count), rows = p.batch * p.width;
  const ChannelRows summaries = summaries_in(memory, p, segments);
  auto *gw = static_cast<float*>(p.gw), *gu = static_cast<float*>(p.gu);
  if (segments.count == 1) {
    return launch(wkv4_backward_kernel<kType>, blocks, kWkv4Threads, bytes, stream, p, segments,
                  summaries, gw, gu);
  }
  float* const gw_parts = memory + summary_floats(p, segments);
  float* const gu_parts = gw_parts + segments.count * rows;
  int error = launch(wkv4_adjoint_kernel<kType>, blocks, kWkv4Threads, bytes, stream, p, segments,
                     summaries);
  if (error != 0) return error;
  error = launch(wkv4_suffix_kernel, blocks_for(p, 1), kWkv4Threads, 0, stream, p, segments,
                 summaries);
  if (error != 0) return error;
  error = launch(wkv4_backward_kernel<kType>, blocks, kWkv4Threads, bytes, stream, p, segments,
                 summaries, gw_parts, gu_parts);
  if (error != 0) return error;
  return launch(wkv4_totals_kernel, ceil_div(rows, kWkv4Threads), kWkv4Threads, 0, stream,
                gw_parts, gu_parts, segments.count, rows, gw, gu);
}

}  // namespace
}  // namespace rwkv

int64_t rwkv_wkv4_forward_floats(const rwkv::Wkv4Forward& params,
                                 const rwkv::LaunchOptions& options) {
  return rwkv::summary_floats(params, rwkv::choose_segments(params, options));
}

int64_t rwkv_wkv4_backward_floats(const rwkv::Wkv4Backward& params,
                                  const rwkv::LaunchOptions& options) {
  const rwkv::Segments segments = rwkv::choose_segments(params, options);
  const int64_t summaries = rwkv::summary_floats(params, segments);
  return summaries == 0 ? 0 : summaries + 2 * segments.count * params.batch * params.width;
}

int rwkv_wkv4_forward_cuda(const rwkv::Wkv4Forward& params, const rwkv::LaunchOptions& options,
                           float* memory, void* stream) {
  const bool keeps = params.checkpoints != nullptr;
  if (keeps && params.checkpoint_interval % rwkv::kWkv4Chunk != 0) return rwkv::kUnsupported;
  return rwkv::with_type(params.dtype, [&]<rwkv::DType kType>() {
    return rwkv::launch_forward<kType>(params, rwkv::choose_segments(params, options), memory,
                                       stream);
  });
}

int rwkv_wkv4_backward_cuda(const rwkv::Wkv4Backward& params, const rwkv::LaunchOptions& options,
                            float* memory, void* stream) {
  const bool one_chunk = params.time <= rwkv::kWkv4Chunk;
  if (!one_chunk && params.checkpoint_interval != rwkv::kWkv4Chunk) return rwkv::kUnsupported;
  return rwkv::with_type(params.dtype, [&]<rwkv::DType kType>() {
    return rwkv::launch_backward<kType>(params, rwkv::choose_segments(params, options), memory,
                                        stream);
  });
}
