// CPU kernels of WKV-5: the recurrence that RWKV-5 and 6 share, with one decay per channel.
#include "wkv5.h"

#include "../wkv5_6/wkv5_6_cpu_heads.h"

namespace rwkv {

void wkv5_forward_cpu(const Wkv5_6Forward& params, int64_t most, int64_t begin, int64_t end) {
  run_heads<Wkv5ForwardHeads>(params, most, begin, end);
}

void wkv5_backward_cpu(const Wkv5_6Backward& params, int64_t most, int64_t begin, int64_t end) {
  run_heads<Wkv5BackwardHeads>(params, most, begin, end);
}

}  // namespace rwkv
