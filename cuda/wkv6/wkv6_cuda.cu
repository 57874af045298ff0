// CUDA kernels of WKV-6: the recurrence that RWKV-5 and 6 share, with a decay per token.
#include "wkv6_cuda.h"

#include "../wkv5_6/wkv5_6_launch.cuh"

int64_t rwkv_wkv6_forward_floats(const rwkv::Wkv5_6Forward& params,
                                 const rwkv::LaunchOptions& options) {
  return rwkv::wkv5_6_forward_floats<true>(params, options);
}

int64_t rwkv_wkv6_backward_floats(const rwkv::Wkv5_6Backward& params,
                                  const rwkv::LaunchOptions& options) {
  return rwkv::wkv5_6_backward_floats<true>(params, options);
}

int rwkv_wkv6_forward_cuda(const rwkv::Wkv5_6Forward& params, const rwkv::LaunchOptions& options,
                           float* memory, void* stream) {
  return rwkv::launch_wkv5_6_forward<true>(params, options, memory, stream);
}

int rwkv_wkv6_backward_cuda(const rwkv::Wkv5_6Backward& params, const rwkv::LaunchOptions& options,
                            float* memory, void* stream) {
  return rwkv::launch_wkv5_6_backward<true>(params, options, memory, stream);
}
