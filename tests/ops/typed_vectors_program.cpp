// Compares the conversions of cpu/typed_vectors.h, whose source depends on the processor, with
// those of cpu/typed_rows.h, element by element; run by test_typed_vectors.py.
#include <cstdio>
#include <cstring>

#include "common/cpu/typed_vectors.h"

using namespace rwkv;

constexpr int L = kLanes<float>;

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

bool both_nan(float x, float y) { return x != x && y != y; }

// All 16-bit numbers.
template <typename E> int64_t wrongly_widened() {
  int64_t wrong = 0;
  for (uint32_t first = 0; first < 65536; first += L) {
    E from[L];
    float found[L];
    for (int i = 0; i < L; ++i) from[i] = {static_cast<uint16_t>(first + i)};
    store<float>(found, load_wide(from));
    for (int i = 0; i < L; ++i) {
      const float exact = widen(from[i]);
      wrong += bits_of(found[i]) != bits_of(exact) && !both_nan(found[i], exact);
    }
  }
  return wrong;
}

// Every `step`th fp32 number but those below the smallest normal one, which kernels take for zero.
template <typename E> int64_t wrongly_narrowed(uint64_t step) {
  int64_t wrong = 0;
  float from[L];
  E found[L];
  for (uint64_t first = 0; first < uint64_t{1} << 32; first += step * L) {
    for (int i = 0; i < L; ++i) {
      uint32_t bits = static_cast<uint32_t>(first + i * step);
      if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
      std::memcpy(&from[i], &bits, sizeof(bits));
    }
    store_narrow(found, load<float>(from));
    for (int i = 0; i < L; ++i) {
      const E exact = narrow<E>(from[i]);
      wrong += found[i].bits != exact.bits && !both_nan(widen(found[i]), widen(exact));
    }
  }
  return wrong;
}

// The first elements alone are read and written.
template <typename E> int64_t wrong_parts() {
  int64_t wrong = 0;
  for (int count = 0; count <= L; ++count) {
    E from[L], to[L];
    for (int i = 0; i < L; ++i) from[i] = to[i] = {static_cast<uint16_t>(0x3c00 + i)};
    store_part(to, count, load_part(from, count) + load_part(from, count));
    for (int i = 0; i < L; ++i) {
      const float exact = widen(from[i]) * (i < count ? 2.0f : 1.0f);
      wrong += widen(to[i]) != exact;
    }
  }
  return wrong;
}

int main() {
  std::printf("widened %lld %lld\n", static_cast<long long>(wrongly_widened<BFloat16>()),
              static_cast<long long>(wrongly_widened<Half>()));
  std::printf("narrowed %lld %lld\n", static_cast<long long>(wrongly_narrowed<BFloat16>(257)),
              static_cast<long long>(wrongly_narrowed<Half>(1021)));
  std::printf("parts %lld %lld\n", static_cast<long long>(wrong_parts<BFloat16>()),
              static_cast<long long>(wrong_parts<Half>()));
}
