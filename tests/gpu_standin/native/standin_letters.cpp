// NCCL's messages from one rank to another. A rank's box takes one of them, so that a rank that sends
// before it receives, as a group of calls does on a card, waits for nobody.
#include "standin_groups.h"
#include "standin_numbers.h"

#include <unistd.h>

#include <cstring>

namespace {

using standin::give_up;
using standin::Letter;
using standin::log_line;
using standin::size_of;

// Waits until the letter is for that reader; 0: until the box is empty.
void wait_for_letter(const ncclComm* group, const Letter& letter, int reader, const char* where) {
  for (long naps = 0; letter.reader != reader; ++naps) {
    if (naps > standin::kNapsAtMost) {
      give_up("mismatch: rank %d of %d waited 120 s in %s, the other did not come", group->rank,
              group->ranks, where);
    }
    usleep(standin::kNapMicroseconds);
  }
}

}  // namespace

STANDIN_EXPORT ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t type, int peer,
                                     ncclComm_t group, cudaStream_t) {
  const size_t bytes = count * size_of(type);
  log_line("collective send %zu ranks %d", bytes, group->ranks);
  if (bytes > standin::kSlotBytes) give_up("the stand-in has no room for a letter of %zu", bytes);
  Letter& letter = group->head().letters[group->rank];
  wait_for_letter(group, letter, 0, "send");
  std::memcpy(group->box(group->rank), from, bytes);
  letter.bytes = bytes;
  letter.type = type;
  letter.reader = peer + 1;
  return ncclSuccess;
}

STANDIN_EXPORT ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t type, int peer,
                                     ncclComm_t group, cudaStream_t) {
  const size_t bytes = count * size_of(type);
  log_line("collective recv %zu ranks %d", bytes, group->ranks);
  Letter& letter = group->head().letters[peer];
  wait_for_letter(group, letter, group->rank + 1, "recv");
  if (letter.bytes != bytes || letter.type != type) {
    give_up("mismatch: rank %d receives %zu bytes (type %d), rank %d sends %zu (type %d)",
            group->rank, bytes, type, peer, letter.bytes, letter.type);
  }
  std::memcpy(to, group->box(peer), bytes);
  letter.reader = 0;
  return ncclSuccess;
}
