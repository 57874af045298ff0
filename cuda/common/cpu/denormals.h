// Numbers below the smallest normal one (1e-38 in float) count as zero while a guard lives.
// Processors work on them up to fifty times slower, and a decaying state arrives there by itself:
// rounding to nearest even keeps it from ever reaching zero.
#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace rwkv {

class FlushToZeroGuard {
 public:
  FlushToZeroGuard() : saved_(read()) { write(saved_ | kFlushToZero); }
  ~FlushToZeroGuard() { write(saved_); }
  FlushToZeroGuard(const FlushToZeroGuard&) = delete;
  FlushToZeroGuard& operator=(const FlushToZeroGuard&) = delete;

 private:
#if defined(__SSE__)
  // Two bits of MXCSR: flush to zero (results) and denormals are zero (operands).
  static constexpr uint64_t kFlushToZero = 0x8040;
  static uint64_t read() { return _mm_getcsr(); }
  static void write(uint64_t x) { _mm_setcsr(static_cast<unsigned>(x)); }
#elif defined(__aarch64__)
  // Bit FZ of FPCR serves results and operands.
  static constexpr uint64_t kFlushToZero = uint64_t{1} << 24;
  static uint64_t read() {
    uint64_t x;
    asm volatile("mrs %0, fpcr" : "=r"(x));
    return x;
  }
  static void write(uint64_t x) { asm volatile("msr fpcr, %0" : : "r"(x)); }
#else
  static constexpr uint64_t kFlushToZero = 0;
  static uint64_t read() { return 0; }
  static void write(uint64_t) {}
#endif

  uint64_t saved_;
};

}  // namespace rwkv
