// CUDA kernels of WKV-5: the recurrence that RWKV-5 and 6 share, with one decay per channel.
#include "wkv5_cuda.h"

#include "../wkv5_6/wkv5_6_launch.cuh"

int64_t rwkv_wkv5_forward_floats(const rwkv::Wkv5_6Forward& params,
                                 const rwkv::LaunchOptions& options) {
  return rwkv::wkv5_6_forward_floats<false>(params, options);
}

int64_t rwkv_wkv5_backward_floats(const rwkv::Wkv5_6Backward& params,
                                  const rwkv::LaunchOptions& options) {
  return rwkv::wkv5_6_backward_floats<false>(params, options);
}

int rwkv_wkv5_forward_cuda(const rwkv::Wkv5_6Forward& params, const rwkv::LaunchOptions& options,
                           float* memory, void* stream) {
  return rwkv::launch_wkv5_6_forward<false>(params, options, memory, stream);
}

int rwkv_wkv5_backward_cuda(const rwkv::Wkv5_6Backward& params, const rwkv::LaunchOptions& options,
                            float* memory, void* stream) {
  return rwkv::launch_wkv5_6_backward<false>(params, options, memory, stream);
}
