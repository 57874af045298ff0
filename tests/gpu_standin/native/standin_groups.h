// A group of the stand-in's NCCL: memory that the processes share.
#pragma once

#include "standin.h"

#include <nccl.h>

#include <atomic>
#include <string>

namespace standin {

constexpr size_t kSlotBytes = size_t{4} << 20;
constexpr size_t kHeadBytes = 16 << 10;
constexpr int kRanksAtMost = 32;
constexpr unsigned kNapMicroseconds = 50;
constexpr long kNapsAtMost = 120L * 1000 * 1000 / kNapMicroseconds;

// What a rank is about to do; zero in fresh memory.
struct Intent {
  char name[16];
  size_t bytes;
  int type, op, root;
};

// What lies in a rank's box; reader: its rank and one, 0 in an empty box.
struct Letter {
  std::atomic<int> reader;
  int type;
  size_t bytes;
};

struct Head {
  std::atomic<int> arrived, generation;
  Intent intents[kRanksAtMost];
  Letter letters[kRanksAtMost];
};
static_assert(sizeof(Head) <= kHeadBytes);

}  // namespace standin

struct ncclComm {
  int ranks, rank;
  std::string name;
  char* memory;  // null for a group of one
  int splits = 0;

  standin::Head& head() const { return *reinterpret_cast<standin::Head*>(memory); }
  // Where a rank leaves its part of a collective, and where a letter to one other rank.
  char* slot(int of_rank) const {
    return memory + standin::kHeadBytes + of_rank * standin::kSlotBytes;
  }
  char* box(int of_rank) const { return slot(ranks + of_rank); }
};
