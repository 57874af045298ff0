// CUDA kernels of the embedding with its norm: launches, reports.
#include "embedding_norm_cuda.h"

#include "embedding_norm_backward.cuh"
#include "embedding_norm_rows.cuh"

namespace rwkv::embedding_norm {
namespace {

constexpr int kThreads = kMostWarps * kWarp;

// Warps of a block whose sums of a row each fit shared memory; 0: not even one's.
int warps_for(int64_t width) {
  for (int warps = kMostWarps; warps > 0; warps /= 2) {
    if (warps * ((width + 3) / 4 * 16) <= most_shared_bytes()) return warps;
  }
  return 0;
}

template <int kChannels> int backward(const CudaBackward& p, void* stream) {
  const int warps = warps_for(p.width);
  if (warps == 0) return kUnsupported;
  if (p.tokens > kOccurrences) {
    const int64_t blocks = ceil_div(p.tokens, kMostWarps);
    const int code = launch(blocks_kernel<kChannels>, blocks, kThreads, 0, stream, p);
    if (code != 0) return code;
  }
  const int64_t blocks = ceil_div(ceil_div(p.tokens, kPlaces), warps);
  const int bytes = warps * static_cast<int>((p.width + 3) / 4 * 16);
  return launch(backward_kernel<kChannels>, blocks, warps * kWarp, bytes, stream, p);
}

// Places are numbered by 64 bits, ids by 32.
bool is_served(const EmbeddingNormSizes& p) {
  return p.dtype != DType::kDouble && p.vocabulary <= INT32_MAX;
}

}  // namespace
}  // namespace rwkv::embedding_norm

int rwkv_embedding_norm_forward_cuda(const rwkv::EmbeddingNormForward& params, void* stream) {
  using namespace rwkv;
  if (!embedding_norm::is_served(params)) return kUnsupported;
  const auto kernel = params.width % kVec8 == 0 ? embedding_norm::forward_kernel<kVec8>
                                                : embedding_norm::forward_kernel<1>;
  const int64_t blocks = ceil_div(params.tokens, embedding_norm::kMostWarps);
  return launch(kernel, blocks, embedding_norm::kThreads, 0, stream, params);
}

int rwkv_embedding_norm_backward_cuda(const rwkv::embedding_norm::CudaBackward& params,
                                      void* stream) {
  using namespace rwkv;
  if (!embedding_norm::is_served(params)) return kUnsupported;
  return params.width % kVec8 == 0 ? embedding_norm::backward<kVec8>(params, stream)
                                   : embedding_norm::backward<1>(params, stream);
}
