// Threads of a block as fibres: stacks of their own inside one thread of the operating system, left
// and entered again only where a kernel waits. Hand-written on x86-64, ucontext elsewhere (slower).
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace rwkv_shim {

#if defined(__x86_64__)

struct Context {
  void* stack_pointer;
};

extern "C" void rwkv_shim_switch(void** leave, void* enter)
    __asm__("rwkv_shim_switch") __attribute__((visibility("hidden")));

// Saves what the System V ABI lets a called function keep, and swaps stacks.
__asm__(R"(
  .text
  .type rwkv_shim_switch, @function
rwkv_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size rwkv_shim_switch, . - rwkv_shim_switch
)");

inline void switch_context(Context& leave, const Context& enter) {
  rwkv_shim_switch(&leave.stack_pointer, enter.stack_pointer);
}

// entry must never return.
inline void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  auto* top = reinterpret_cast<void**>(stack + bytes);
  // A called function finds its return address at an address that is 8 modulo 16.
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

#else

struct Context {
  ucontext_t context;
};

inline void switch_context(Context& leave, const Context& enter) {
  swapcontext(&leave.context, &enter.context);
}

inline void prepare_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = bytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}

#endif

// Stacks for `count` fibres, reused by every launch; below each lies a page that must not be
// touched, so that an overflow stops the program at once.
class Stacks {
 public:
  static constexpr size_t kBytes = 256 * 1024;

  char* of(int fibre) {
    while (count_ <= fibre) add();
    return stacks_[fibre];
  }

 private:
  static constexpr int kMost = 1024;

  void add() {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kBytes + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || count_ == kMost) abort();
    mprotect(memory, page, PROT_NONE);
    stacks_[count_++] = static_cast<char*>(memory) + page;
  }

  char* stacks_[kMost] = {};
  int count_ = 0;
};

}  // namespace rwkv_shim
