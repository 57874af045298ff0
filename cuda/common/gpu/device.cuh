// What every .cu file needs of CUDA, or of the host shim that stands in for it (cuda/host_shim).
#pragma once

#include <cstdint>

#ifndef RWKV_HOST_SHIM
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define LAUNCH(kernel, grid, block, bytes, stream, ...) \
  kernel<<<grid, block, bytes, stream>>>(__VA_ARGS__)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

namespace rwkv {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ inline int lane_number() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_number() { return static_cast<int>(threadIdx.x) / kWarp; }

// Cuts shared memory into aligned pieces. On the host, started from null, it counts the bytes.
class Pieces {
 public:
  __host__ __device__ explicit Pieces(unsigned char* base) : base_(base) {}

  __host__ __device__ float* floats(int count) {
    return reinterpret_cast<float*>(bytes(count * static_cast<int>(sizeof(float))));
  }
  __host__ __device__ unsigned char* bytes(int count) {
    unsigned char* const piece = base_ + used_;
    used_ += (count + 15) / 16 * 16;
    return piece;
  }
  __host__ __device__ int used() const { return used_; }

 private:
  unsigned char* base_;
  int used_ = 0;
};

// Launches a kernel with one-dimensional grid and block; 0 or the error's number. More than 48 KB
// of shared memory must be asked for.
template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes,
           void* stream, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  const dim3 grid(static_cast<unsigned>(blocks)), block(static_cast<unsigned>(threads));
  LAUNCH(kernel, grid, block, static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream),
         arguments...);
  return static_cast<int>(cudaGetLastError());
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, attribute, device);
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// That a block can have.
inline int most_shared_bytes() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

}  // namespace rwkv
