// CUDA kernels of WKV-5: the recurrence that RWKV-5 and 6 share, with one decay per channel.
#include "../wkv5_6/wkv5_6_launch.cuh"

template struct rwkv::Wkv5_6Launchers<false>;
