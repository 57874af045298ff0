// Gives the CUDA kernels of WKV-6 to the operators that wkv6_ops.cpp defines.
#include <torch/library.h>

#include "../wkv5_6/wkv5_6_cuda_host.h"

TORCH_LIBRARY_IMPL(rwkv, CUDA, m) {
  m.impl("wkv6_forward", &rwkv::wkv5_6_forward_on_cuda<true>);
  m.impl("wkv6_backward", &rwkv::wkv5_6_backward_on_cuda<true>);
}
