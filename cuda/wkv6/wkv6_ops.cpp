// The operators of WKV-6 and their CPU kernels. The schema, which WKV-5 and 6 share:
// wkv5_6/wkv5_6_ops.h.
#include "../wkv5_6/wkv5_6_ops.h"

TORCH_LIBRARY_FRAGMENT(rwkv, m) { rwkv::define_wkv5_6(m, "wkv6"); }

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("wkv6_forward", &rwkv::wkv5_6_forward_on_cpu<true>);
  m.impl("wkv6_backward", &rwkv::wkv5_6_backward_on_cpu<true>);
}
