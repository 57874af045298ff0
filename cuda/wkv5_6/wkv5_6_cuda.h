// The CUDA launchers of WKV-5 (kDecayPerToken false) and WKV-6; no torch. What they return:
// common/params/launch_options.h. Compiled in wkv5_cuda.cu and wkv6_cuda.cu, one of the two each.
#pragma once

#include "../common/params/launch_options.h"
#include "wkv5_6_params.h"

namespace rwkv {

template <bool kDecayPerToken> struct Wkv5_6Launchers {
  // Floats of memory that each pass works in.
  static int64_t forward_floats(const Wkv5_6Forward& params, const LaunchOptions& options);
  static int64_t backward_floats(const Wkv5_6Backward& params, const LaunchOptions& options);

  static int forward_cuda(const Wkv5_6Forward& params, const LaunchOptions& options, float* memory,
                          void* stream);
  static int backward_cuda(const Wkv5_6Backward& params, const LaunchOptions& options,
                           float* memory, void* stream);
};

}  // namespace rwkv
