// Runs the blocks of a launch one after another, the threads of a block as fibres. A warp runs
// until all its threads wait for the block, then the next warp; which warp and which thread comes
// first can be turned round, so that a missing barrier changes results.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "fibres.h"
#include "types.h"

namespace rwkv_shim {

constexpr int kWarpSize = 32;
constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kPoison = 0xff;  // as float, bfloat16 or half: NaN
constexpr unsigned char kGuard = 0xa5;

enum class Waits { kNothing, kForWarp, kForBlock, kDone };

struct Place {
  const char* what;
  const char* file;
  int line;
};

// A copy that cp.async has issued; it takes place when the thread waits for it.
struct PendingCopy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Fibre {
  Context context;
  dim3 thread;
  int lane, warp;
  Waits waits;
  Place place;
  unsigned collectives;  // shuffles so far
  std::vector<std::vector<PendingCopy>> copy_groups;
  std::vector<PendingCopy> copies;
};

enum class Order { kAscending, kDescending };

class Runner {
 public:
  Fibre* current = nullptr;
  dim3 grid, block, block_index;
  Order order = Order::kAscending;
  int multiprocessors = 132;
  size_t most_shared_bytes = 227 * 1024;  // a launch that asks for more fails; Hopper's limit
  std::string error;
  unsigned char* shared = nullptr;

  template <typename Body> void launch(dim3 grid_size, dim3 block_size, size_t bytes, Body body) {
    const unsigned threads = block_size.x * block_size.y * block_size.z;
    if (!error.empty()) return;
    if (threads == 0 || threads > 1024) return fail("a block must have 1 to 1024 threads");
    if (bytes > most_shared_bytes) return fail("more shared memory than a block can have");
    grid = grid_size, block = block_size;
    memory_.resize(bytes + 2 * kGuardBytes + 128);
    body_ = [](void* body) { (*static_cast<Body*>(body))(); };
    body_data_ = &body;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks && error.empty(); ++i) {
      block_index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
      run_block(static_cast<int>(threads), bytes);
    }
    body_data_ = nullptr;
  }

  void wait(Waits what, const Place& place) {
    current->waits = what;
    current->place = place;
    switch_context(current->context, scheduler_);
  }

  // The value that thread `source` of the warp gives; every thread of the warp must take part.
  template <typename T> T shuffle(T value, int source, const Place& place) {
    const Slot* const slots = gather(value, place);
    T result;
    std::memcpy(&result, slots[source & (kWarpSize - 1)].bytes, sizeof(T));
    return result;
  }

  // What all threads of the warp give, by lane; good until this thread's next but one collective.
  struct alignas(16) Slot {
    unsigned char bytes[32];
  };
  template <typename T> const Slot* gather(const T& value, const Place& place) {
    static_assert(sizeof(T) <= sizeof(Slot));
    Slot* const slots = slots_[current->warp][current->collectives++ & 1];
    std::memcpy(slots[current->lane].bytes, &value, sizeof(T));
    wait(Waits::kForWarp, place);
    return slots;
  }

 private:
  void fail(const std::string& message) {
    if (error.empty()) error = message;
  }

  static void enter();

  void run_block(int threads, size_t bytes) {
    prepare_memory(bytes);
    fibres_.resize(threads);
    for (int i = 0; i < threads; ++i) prepare_fibre(i);
    const int warps = (threads + kWarpSize - 1) / kWarpSize;
    while (true) {
      for (int n = 0; n < warps; ++n) run_warp(order == Order::kAscending ? n : warps - 1 - n);
      int done = 0, waiting = 0;
      for (const Fibre& fibre : fibres_) {
        done += fibre.waits == Waits::kDone;
        waiting += fibre.waits == Waits::kForBlock;
      }
      if (done == threads) break;
      if (waiting != threads || !all_at_one_place()) return fail(describe_deadlock());
      for (Fibre& fibre : fibres_) fibre.waits = Waits::kNothing;
    }
    check_guards(bytes);
  }

  // Until all threads of the warp wait for the block, are done or cannot continue.
  void run_warp(int warp) {
    const int first = warp * kWarpSize;
    const int count = std::min(kWarpSize, static_cast<int>(fibres_.size()) - first);
    while (true) {
      int waiting = 0;
      for (int n = 0; n < count; ++n) {
        Fibre& fibre = fibres_[first + (order == Order::kAscending ? n : count - 1 - n)];
        if (fibre.waits == Waits::kNothing) {
          current = &fibre;
          switch_context(scheduler_, fibre.context);
          current = nullptr;
        }
        waiting += fibre.waits == Waits::kForWarp;
      }
      if (waiting != count) return;
      for (int n = 0; n < count; ++n) fibres_[first + n].waits = Waits::kNothing;
    }
  }

  void prepare_fibre(int index) {
    Fibre& fibre = fibres_[index];
    const unsigned i = static_cast<unsigned>(index);
    fibre.thread = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    fibre.lane = index % kWarpSize, fibre.warp = index / kWarpSize;
    fibre.waits = Waits::kNothing;
    fibre.collectives = 0;
    fibre.copy_groups.clear(), fibre.copies.clear();
    prepare_context(fibre.context, stacks_.of(index), Stacks::kBytes, &Runner::enter);
  }

  void prepare_memory(size_t bytes) {
    const auto base = reinterpret_cast<uintptr_t>(memory_.data() + kGuardBytes);
    shared = reinterpret_cast<unsigned char*>((base + 127) / 128 * 128);
    std::memset(shared - kGuardBytes, kGuard, kGuardBytes);
    std::memset(shared, kPoison, bytes);
    std::memset(shared + bytes, kGuard, kGuardBytes);
  }

  void check_guards(size_t bytes) {
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (shared[i - kGuardBytes] != kGuard) return fail(where() + "wrote before shared memory");
      if (shared[bytes + i] != kGuard) return fail(where() + "wrote beyond shared memory");
    }
  }

  bool all_at_one_place() const {
    for (const Fibre& fibre : fibres_) {
      const Place &a = fibre.place, &b = fibres_[0].place;
      if (a.line != b.line || std::strcmp(a.file, b.file) != 0) return false;
    }
    return true;
  }

  std::string where() const {
    char text[96];
    std::snprintf(text, sizeof text, "block (%u, %u, %u): ", block_index.x, block_index.y,
                  block_index.z);
    return text;
  }

  // Lists runs of threads that wait at the same place.
  std::string describe_deadlock() const {
    std::string text = where() + "its threads wait for each other in vain:";
    for (size_t first = 0; first < fibres_.size();) {
      size_t end = first + 1;
      while (end < fibres_.size() && describe(fibres_[end]) == describe(fibres_[first])) ++end;
      text += "\n  threads " + std::to_string(first) + " to " + std::to_string(end - 1) + " " +
              describe(fibres_[first]);
      first = end;
    }
    return text;
  }

  static std::string describe(const Fibre& fibre) {
    if (fibre.waits == Waits::kDone) return "have returned";
    return std::string("wait at ") + fibre.place.what + ", " + fibre.place.file + ":" +
           std::to_string(fibre.place.line);
  }

  Context scheduler_;
  Stacks stacks_;
  std::vector<Fibre> fibres_;
  std::vector<unsigned char> memory_;
  Slot slots_[kWarpSize][2][kWarpSize];
  void (*body_)(void*) = nullptr;
  void* body_data_ = nullptr;
};

inline Runner runner;

inline void Runner::enter() {
  runner.body_(runner.body_data_);
  runner.wait(Waits::kDone, {"the end", "", 0});
}

}  // namespace rwkv_shim
