// Cards, streams and events. Everything is done at once, so waiting for it only leaves a line.
#include "standin.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdio>
#include <cstring>

namespace {

using standin::Card;
using standin::card;
using standin::card_count;
using standin::log_line;

constexpr int kWarp = 32;
constexpr int kRegisters = 64 << 10;
constexpr int kL2Bytes = 40 << 20;
constexpr int kCudaVersion = CUDART_VERSION / 1000 * 1000;

thread_local int current = 0;
std::atomic<uintptr_t> next_handle{0x1000};

template <typename Handle> cudaError_t make(Handle* handle) {
  *handle = reinterpret_cast<Handle>(next_handle += 16);
  return cudaSuccess;
}

cudaError_t waited_for(const char* what) {
  log_line("sync %s", what);
  return cudaSuccess;
}

// Every function of the driver that torch looks up by name and calls without need of an answer.
int succeed() { return 0; }

}  // namespace

STANDIN_EXPORT cudaError_t cudaGetDeviceCount(int* count) {
  *count = card_count();
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}
STANDIN_EXPORT cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= card_count()) return cudaErrorInvalidDevice;
  current = device;
  return cudaSuccess;
}

STANDIN_EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  if (device < 0 || device >= card_count()) return cudaErrorInvalidDevice;
  const Card& it = card();
  std::memset(found, 0, sizeof *found);
  std::snprintf(found->name, sizeof found->name, "stand-in for %s", it.name);
  found->major = it.major;
  found->minor = it.minor;
  found->totalGlobalMem = it.memory_bytes;
  found->multiProcessorCount = it.multiprocessors;
  found->maxThreadsPerMultiProcessor = it.threads_per_multiprocessor;
  found->maxBlocksPerMultiProcessor = it.blocks_per_multiprocessor;
  found->sharedMemPerBlock = standin::kSharedWithoutAsking;
  found->sharedMemPerBlockOptin = it.shared_per_block;
  found->sharedMemPerMultiprocessor = it.shared_per_multiprocessor;
  found->regsPerBlock = found->regsPerMultiprocessor = kRegisters;
  found->warpSize = kWarp;
  found->maxThreadsPerBlock = standin::kThreadsPerBlock;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = standin::kThreadsPerBlock;
  found->maxThreadsDim[2] = standin::kBlockDepth;
  found->maxGridSize[0] = 0x7fffffff;
  found->maxGridSize[1] = found->maxGridSize[2] = standin::kGridLimitYZ;
  found->l2CacheSize = kL2Bytes;
  found->pciBusID = device + 1;
  found->unifiedAddressing = found->concurrentKernels = found->canMapHostMemory = 1;
  found->textureAlignment = 512;
  return cudaSuccess;
}

STANDIN_EXPORT cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute,
                                                  int device) {
  cudaDeviceProp it;
  const cudaError_t error = cudaGetDeviceProperties(&it, device);
  if (error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = it.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = it.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = it.multiProcessorCount; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = it.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = it.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = it.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = it.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = it.sharedMemPerMultiprocessor;
      break;
    case cudaDevAttrMaxRegistersPerBlock: *value = it.regsPerBlock; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = it.maxThreadsPerBlock; break;
    case cudaDevAttrMaxGridDimX: *value = it.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = it.maxGridSize[1]; break;
    case cudaDevAttrWarpSize: *value = it.warpSize; break;
    case cudaDevAttrL2CacheSize: *value = it.l2CacheSize; break;
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

STANDIN_EXPORT cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  std::snprintf(text, bytes, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaDriverGetVersion(int* version) {
  *version = kCudaVersion;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kCudaVersion;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaGetDriverEntryPointByVersion(
    const char*, void** found, unsigned, unsigned long long,
    cudaDriverEntryPointQueryResult* result) {
  *found = reinterpret_cast<void*>(succeed);
  if (result != nullptr) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

STANDIN_EXPORT cudaError_t cudaDeviceSynchronize() { return waited_for("device"); }
STANDIN_EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t) { return waited_for("stream"); }
STANDIN_EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t) { return waited_for("event"); }

STANDIN_EXPORT cudaError_t cudaStreamCreate(cudaStream_t* stream) { return make(stream); }
STANDIN_EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return make(stream);
}
STANDIN_EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return make(stream);
}
STANDIN_EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
STANDIN_EXPORT cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
STANDIN_EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long*, cudaGraph_t*,
    const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  function(data);
  return cudaSuccess;
}

STANDIN_EXPORT cudaError_t cudaEventCreate(cudaEvent_t* event) { return make(event); }
STANDIN_EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return make(event);
}
STANDIN_EXPORT cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
STANDIN_EXPORT cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
STANDIN_EXPORT cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
STANDIN_EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) {
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1.0f;
  return cudaSuccess;
}

STANDIN_EXPORT const char* cudaGetErrorString(cudaError_t error) {
  static thread_local char text[48];
  std::snprintf(text, sizeof text, "the stand-in's CUDA error %d", error);
  return text;
}
STANDIN_EXPORT const char* cudaGetErrorName(cudaError_t error) {
  return cudaGetErrorString(error);
}
