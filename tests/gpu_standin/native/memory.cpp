// Device memory is host memory, fresh from the system and so zero; copies are done for real.
#include "standin.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>

namespace {

using standin::card;
using standin::log_line;

constexpr size_t kPage = 4096;
constexpr int kPinned = -1;
constexpr int kPageable = -2;

struct Range {
  size_t bytes;
  int place;  // number of a card, or kPinned
};

std::mutex ranges_mutex;
std::atomic<size_t> used_bytes{0};

// Never destroyed: torch frees memory while the process ends.
std::map<uintptr_t, Range>& ranges() {
  static auto* all = new std::map<uintptr_t, Range>;
  return *all;
}

int current_card() {
  int number = 0;
  cudaGetDevice(&number);
  return number;
}

cudaError_t take(void** pointer, size_t bytes, int place) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  const size_t length = (bytes + kPage - 1) / kPage * kPage;
  if (place >= 0 && used_bytes + length > card().memory_bytes) return cudaErrorMemoryAllocation;
  void* found = mmap(nullptr, length, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return cudaErrorMemoryAllocation;
  if (place >= 0) used_bytes += length;
  std::lock_guard<std::mutex> guard(ranges_mutex);
  ranges()[reinterpret_cast<uintptr_t>(found)] = {length, place};
  *pointer = found;
  return cudaSuccess;
}

cudaError_t give_back(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  std::unique_lock<std::mutex> guard(ranges_mutex);
  const auto found = ranges().find(reinterpret_cast<uintptr_t>(pointer));
  if (found == ranges().end()) return cudaErrorInvalidValue;
  const Range range = found->second;
  ranges().erase(found);
  guard.unlock();
  munmap(pointer, range.bytes);
  if (range.place >= 0) used_bytes -= range.bytes;
  return cudaSuccess;
}

int place_of(const void* pointer) {
  std::lock_guard<std::mutex> guard(ranges_mutex);
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto found = ranges().upper_bound(address);
  if (found == ranges().begin()) return kPageable;
  --found;
  return address < found->first + found->second.bytes ? found->second.place : kPageable;
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
  const int target = place_of(to), source = place_of(from);
  const bool pageable = target == kPageable || source == kPageable;
  log_line("copy %sto%s %zu%s", source >= 0 ? "D" : "H", target >= 0 ? "D" : "H", bytes,
           pageable ? " pageable" : "");
  if (bytes != 0) std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t fill(void* to, int value, size_t bytes) {
  log_line("fill %zu", bytes);
  std::memset(to, value, bytes);
  return cudaSuccess;
}

}  // namespace

STANDIN_EXPORT cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return take(pointer, bytes, current_card());
}
STANDIN_EXPORT cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  return take(pointer, bytes, current_card());
}
STANDIN_EXPORT cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return take(pointer, bytes, kPinned);
}
STANDIN_EXPORT cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return take(pointer, bytes, kPinned);
}
STANDIN_EXPORT cudaError_t cudaFree(void* pointer) { return give_back(pointer); }
STANDIN_EXPORT cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) {
  return give_back(pointer);
}
STANDIN_EXPORT cudaError_t cudaFreeHost(void* pointer) { return give_back(pointer); }

STANDIN_EXPORT cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned) {
  std::lock_guard<std::mutex> guard(ranges_mutex);
  ranges()[reinterpret_cast<uintptr_t>(pointer)] = {bytes, kPinned};
  return cudaSuccess;
}
STANDIN_EXPORT cudaError_t cudaHostUnregister(void* pointer) {
  std::lock_guard<std::mutex> guard(ranges_mutex);
  ranges().erase(reinterpret_cast<uintptr_t>(pointer));
  return cudaSuccess;
}

STANDIN_EXPORT cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = card().memory_bytes;
  *free = *total - used_bytes;
  return cudaSuccess;
}

STANDIN_EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found,
                                                    const void* pointer) {
  const int place = place_of(pointer);
  *found = {};
  found->type = place >= 0          ? cudaMemoryTypeDevice
                : place == kPinned ? cudaMemoryTypeHost
                                   : cudaMemoryTypeUnregistered;
  found->device = place >= 0 ? place : place == kPinned ? 0 : -2;
  found->devicePointer = found->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}

// The direction follows from the pointers; the one that was passed would only repeat it.
STANDIN_EXPORT cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  log_line("sync copy");
  return copy(to, from, bytes);
}
STANDIN_EXPORT cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                                           cudaMemcpyKind, cudaStream_t) {
  return copy(to, from, bytes);
}
STANDIN_EXPORT cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int,
                                               size_t bytes, cudaStream_t) {
  return copy(to, from, bytes);
}
STANDIN_EXPORT cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return fill(to, value, bytes);
}
STANDIN_EXPORT cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return fill(to, value, bytes);
}
