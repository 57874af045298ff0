// CPU kernels of WKV-6: the recurrence that RWKV-5 and 6 share, with a decay per token.
#include "../wkv5_6/wkv5_6_cpu_heads.h"

template struct rwkv::Wkv5_6CpuKernels<true>;
