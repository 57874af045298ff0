// Copies from global to shared memory that run while a thread computes (cp.async, sm_80 and newer).
#pragma once

#include "device.cuh"

namespace rwkv {

// 16 bytes, both addresses multiples of 16.
__device__ inline void copy_16_async(void* to, const void* from) {
#if defined(RWKV_HOST_SHIM)
  rwkv_shim::copy_async(to, from, 16);
#elif __CUDA_ARCH__ >= 800
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
#else
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#endif
}

// The same, or 16 zeros where there is nothing to copy; from must be valid all the same.
__device__ inline void copy_16_or_zeros_async(void* to, const void* from, bool present) {
#if defined(RWKV_HOST_SHIM)
  rwkv_shim::copy_async(to, present ? from : nullptr, 16);
#elif __CUDA_ARCH__ >= 800
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to) = present ? *static_cast<const uint4*>(from) : uint4{};
#endif
}

// Closes the group of copies issued since the last call.
__device__ inline void commit_copies() {
#if defined(RWKV_HOST_SHIM)
  rwkv_shim::commit_copies();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's own copies; a barrier must follow before other threads read them.
__device__ inline void wait_for_copies() {
#if defined(RWKV_HOST_SHIM)
  rwkv_shim::wait_for_copies(0);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
}

// Copies `rows` rows of kElements elements of `element_bytes` (2 or 4), `stride` elements apart in
// global memory, one behind the other into shared memory. All threads of the block take part.
template <int kElements, int kThreads>
__device__ void copy_rows_async(unsigned char* to, const void* from, int rows, int64_t stride,
                                int element_bytes) {
  const int pieces = element_bytes == 4 ? kElements / 4 : kElements / 8;  // of 16 bytes, per row
  const int shift = __ffs(pieces) - 1;
  const auto* source = static_cast<const unsigned char*>(from);
  // Unrolled, the addresses of all copies would be held in registers at the same time.
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += kThreads) {
    const int64_t row = i >> shift, byte = (i & (pieces - 1)) * 16;
    copy_16_async(to + i * 16, source + row * stride * element_bytes + byte);
  }
}

}  // namespace rwkv
