// Kernels do nothing. What a card would refuse of a launch is refused, and stands in the log.
#include "standin.h"

#include <cuda_runtime_api.h>

#include <mutex>
#include <string>
#include <unordered_map>

namespace {

using standin::card;
using standin::log_line;

struct Kernel {
  std::string name = "?";
  size_t shared_limit = standin::kSharedWithoutAsking;
};

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

std::mutex kernels_mutex;
thread_local Configuration pushed;
thread_local cudaError_t last_error = cudaSuccess;

std::unordered_map<const void*, Kernel>& kernels() {
  static auto* all = new std::unordered_map<const void*, Kernel>;
  return *all;
}

cudaError_t failed(cudaError_t error) { return last_error = error; }

const char* fault_of(dim3 grid, dim3 block, size_t shared, size_t shared_limit) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "an empty grid";
  if (grid.x > 0x7fffffffu || grid.y > standin::kGridLimitYZ || grid.z > standin::kGridLimitYZ)
    return "too large a grid";
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0) return "an empty block";
  if (threads > standin::kThreadsPerBlock || block.z > standin::kBlockDepth)
    return "too large a block";
  if (shared > shared_limit) return "more shared memory than asked for";
  return nullptr;
}

cudaError_t launch(const void* function, dim3 grid, dim3 block, size_t shared) {
  std::unique_lock<std::mutex> guard(kernels_mutex);
  const auto found = kernels().find(function);
  const Kernel kernel = found == kernels().end() ? Kernel{} : found->second;
  guard.unlock();
  const char* fault = fault_of(grid, block, shared, kernel.shared_limit);
  log_line("%s %s grid %u,%u,%u block %u,%u,%u shared %zu%s%s", fault ? "fault" : "launch",
           kernel.name.c_str(), grid.x, grid.y, grid.z, block.x, block.y, block.z, shared,
           fault ? ": " : "", fault ? fault : "");
  return fault ? failed(cudaErrorInvalidConfiguration) : cudaSuccess;
}

}  // namespace

STANDIN_EXPORT cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**,
                                            size_t shared, cudaStream_t) {
  return launch(function, grid, block, shared);
}
STANDIN_EXPORT cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid,
                                                       dim3 block, void**, size_t shared,
                                                       cudaStream_t) {
  return launch(function, grid, block, shared);
}
STANDIN_EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how,
                                               const void* function, void**) {
  return launch(function, how->gridDim, how->blockDim, how->dynamicSmemBytes);
}

STANDIN_EXPORT cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute which,
                                                int value) {
  if (which != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  std::lock_guard<std::mutex> guard(kernels_mutex);
  Kernel& kernel = kernels()[function];
  if (value > card().shared_per_block) {
    log_line("fault %s asks for %d bytes of shared memory, the card has %d", kernel.name.c_str(),
             value, card().shared_per_block);
    return failed(cudaErrorInvalidValue);
  }
  kernel.shared_limit = value;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  *found = {};
  found->maxThreadsPerBlock = standin::kThreadsPerBlock;
  found->maxDynamicSharedSizeBytes = standin::kSharedWithoutAsking;
  found->numRegs = 32;
  found->binaryVersion = found->ptxVersion = card().major * 10 + card().minor;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*,
                                                                         int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaGetSymbolAddress(void** found, const void* symbol) {
  *found = const_cast<void*>(symbol);
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
STANDIN_EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }

// What nvcc puts into a program around its kernels.
STANDIN_EXPORT void** __cudaRegisterFatBinary(void*) {
  static void* handle[1];
  return handle;
}
STANDIN_EXPORT void __cudaRegisterFatBinaryEnd(void**) {}
STANDIN_EXPORT void __cudaUnregisterFatBinary(void**) {}
STANDIN_EXPORT void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
STANDIN_EXPORT char __cudaInitModule(void**) { return 0; }
STANDIN_EXPORT void __cudaRegisterFunction(void**, const char* function, char*, const char* name,
                                           int, void*, void*, void*, void*, int*) {
  std::lock_guard<std::mutex> guard(kernels_mutex);
  kernels()[function].name = name;
}
STANDIN_EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared,
                                                    cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
STANDIN_EXPORT cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared,
                                                      void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**,
                                              size_t shared, cudaStream_t) {
  return launch(kernel, grid, block, shared);
}
