// What the parts of the stand-in share: the log, the pretended card, and the way to export.
#pragma once

#include <cstddef>

#define STANDIN_EXPORT extern "C" __attribute__((visibility("default")))

namespace standin {

// A card as far as the host program can ask for it.
struct Card {
  const char* name;
  int major, minor;
  int multiprocessors;
  int threads_per_multiprocessor;
  int blocks_per_multiprocessor;
  int shared_per_block;  // after cudaFuncSetAttribute
  int shared_per_multiprocessor;
  size_t memory_bytes;
};

inline constexpr int kSharedWithoutAsking = 48 << 10;
inline constexpr unsigned kThreadsPerBlock = 1024;
inline constexpr unsigned kBlockDepth = 64;
inline constexpr unsigned kGridLimitYZ = 65535;

// The one named by STANDIN_CARD, and how many of them by STANDIN_CARDS.
const Card& card();
int card_count();

// Appends a line to the file STANDIN_LOG.<process number>; nothing without that variable.
void log_line(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Tells the log and the user what no program may do, and ends the process.
[[noreturn]] void give_up(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace standin
