// NCCL's collectives between processes of one machine, through shared memory. Each first compares
// what the ranks are about to do: on real cards ranks that differ hang, or mix up each other's data.
#include "standin_groups.h"
#include "standin_numbers.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace {

using standin::combined;
using standin::give_up;
using standin::Head;
using standin::Intent;
using standin::kHeadBytes;
using standin::kNapMicroseconds;
using standin::kNapsAtMost;
using standin::kRanksAtMost;
using standin::kSlotBytes;
using standin::log_line;
using standin::read_number;
using standin::size_of;
using standin::write_number;

void wait_for_all(ncclComm* group, const char* where) {
  if (group->ranks == 1) return;
  Head& head = group->head();
  const int generation = head.generation;
  if (head.arrived.fetch_add(1) + 1 == group->ranks) {
    head.arrived = 0;
    ++head.generation;
    return;
  }
  for (long naps = 0; head.generation == generation; ++naps) {
    if (naps > kNapsAtMost) {
      give_up("mismatch: rank %d of %d waited 120 s in %s, others did not come", group->rank,
              group->ranks, where);
    }
    usleep(kNapMicroseconds);
  }
}

void agree(ncclComm* group, const char* name, size_t bytes, int type, int op = -1,
           int root = -1) {
  log_line("collective %s %zu ranks %d", name, bytes, group->ranks);
  if (group->ranks == 1) return;
  Intent own{};
  std::snprintf(own.name, sizeof own.name, "%s", name);
  own.bytes = bytes;
  own.type = type;
  own.op = op;
  own.root = root;
  Intent* intents = group->head().intents;
  intents[group->rank] = own;
  wait_for_all(group, name);
  for (int other = 0; other < group->ranks; ++other) {
    const Intent& its = intents[other];
    if (std::memcmp(&its, &own, sizeof own) != 0) {
      give_up("mismatch: rank %d calls %s of %zu bytes (type %d, op %d, root %d), rank %d %s of "
              "%zu bytes (type %d, op %d, root %d)",
              group->rank, own.name, own.bytes, own.type, own.op, own.root, other, its.name,
              its.bytes, its.type, its.op, its.root);
    }
  }
  wait_for_all(group, name);
}

// Writes the ranks' numbers, which lie at the start of their slots, combined in order of ranks.
void reduce_slots(ncclComm* group, char* to, size_t bytes, ncclDataType_t type, ncclRedOp_t op) {
  const size_t step = size_of(type);
  for (size_t at = 0; at < bytes; at += step) {
    double value = read_number(group->slot(0) + at, type);
    for (int rank = 1; rank < group->ranks; ++rank) {
      value = combined(value, read_number(group->slot(rank) + at, type), op);
    }
    write_number(to + at, type, op == ncclAvg ? value / group->ranks : value);
  }
}

// Passes `bytes` of every rank that has a `source` through the slots, a slot's worth at a time:
// take(offset, bytes) reads them.
template <typename Take>
void pass(ncclComm* group, const void* source, size_t bytes, const Take& take) {
  for (size_t at = 0; at < bytes; at += kSlotBytes) {
    const size_t part = std::min(kSlotBytes, bytes - at);
    if (source != nullptr) {
      std::memcpy(group->slot(group->rank), static_cast<const char*>(source) + at, part);
    }
    wait_for_all(group, "an exchange");
    take(at, part);
    wait_for_all(group, "an exchange");
  }
}

// Of one rank, everything but the place stays as it is.
ncclResult_t alone(void* to, const void* from, size_t bytes) {
  if (to != from && to != nullptr) std::memmove(to, from, bytes);
  return ncclSuccess;
}

ncclResult_t join(ncclComm_t* joined, int ranks, const std::string& name, int rank) {
  if (ranks > kRanksAtMost) give_up("the stand-in has room for %d ranks", kRanksAtMost);
  auto* group = new ncclComm{ranks, rank, name, nullptr};
  *joined = group;
  if (ranks == 1) return ncclSuccess;
  const size_t bytes = kHeadBytes + 2 * ranks * kSlotBytes;
  const int file = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) return ncclSystemError;
  void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (found == MAP_FAILED) return ncclSystemError;
  group->memory = static_cast<char*>(found);
  wait_for_all(group, "the start of a group");
  // All have it; the name must not outlive them.
  if (rank == 0) shm_unlink(name.c_str());
  return ncclSuccess;
}

}  // namespace

STANDIN_EXPORT ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
STANDIN_EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static std::atomic<int> made{0};
  *id = {};
  std::snprintf(id->internal, sizeof id->internal, "/gpu-standin-%d-%d", getpid(), made++);
  return ncclSuccess;
}
STANDIN_EXPORT ncclResult_t ncclCommInitRank(ncclComm_t* group, int ranks, ncclUniqueId id,
                                             int rank) {
  return join(group, ranks, id.internal, rank);
}
STANDIN_EXPORT ncclResult_t ncclCommInitRankConfig(ncclComm_t* group, int ranks, ncclUniqueId id,
                                                   int rank, ncclConfig_t*) {
  return join(group, ranks, id.internal, rank);
}
STANDIN_EXPORT ncclResult_t ncclCommInitRankScalable(ncclComm_t* group, int ranks, int rank, int,
                                                     ncclUniqueId* ids, ncclConfig_t*) {
  return join(group, ranks, ids[0].internal, rank);
}

// Ranks of one color make a group, in order of their keys.
STANDIN_EXPORT ncclResult_t ncclCommSplit(ncclComm_t group, int color, int key, ncclComm_t* part,
                                          ncclConfig_t*) {
  agree(group, "split", 0, 0);
  const std::string name =
      group->name + "-" + std::to_string(group->splits++) + "-" + std::to_string(color);
  *part = nullptr;
  const int own[2] = {color, key};
  int ranks = 0, rank = 0;
  if (group->ranks == 1) {
    ranks = 1;
  } else {
    pass(group, own, sizeof own, [&](size_t, size_t) {
      for (int other = 0; other < group->ranks; ++other) {
        int its[2];
        std::memcpy(its, group->slot(other), sizeof its);
        if (its[0] != color) continue;
        ++ranks;
        if (its[1] < key || (its[1] == key && other < group->rank)) ++rank;
      }
    });
  }
  return color < 0 ? ncclSuccess : join(part, ranks, name, rank);
}

STANDIN_EXPORT ncclResult_t ncclCommCount(const ncclComm_t group, int* ranks) {
  *ranks = group->ranks;
  return ncclSuccess;
}
STANDIN_EXPORT ncclResult_t ncclCommUserRank(const ncclComm_t group, int* rank) {
  *rank = group->rank;
  return ncclSuccess;
}
STANDIN_EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  *error = ncclSuccess;
  return ncclSuccess;
}
STANDIN_EXPORT ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
// Not freed: torch's threads may still ask after it.
STANDIN_EXPORT ncclResult_t ncclCommDestroy(ncclComm_t) { return ncclSuccess; }
STANDIN_EXPORT ncclResult_t ncclCommAbort(ncclComm_t) { return ncclSuccess; }
STANDIN_EXPORT ncclResult_t ncclGroupStart() { return ncclSuccess; }
STANDIN_EXPORT ncclResult_t ncclGroupEnd() { return ncclSuccess; }
STANDIN_EXPORT const char* ncclGetErrorString(ncclResult_t) { return "a fault of the stand-in"; }
STANDIN_EXPORT const char* ncclGetLastError(ncclComm_t) { return "a fault of the stand-in"; }

STANDIN_EXPORT ncclResult_t ncclAllReduce(const void* from, void* to, size_t count,
                                          ncclDataType_t type, ncclRedOp_t op, ncclComm_t group,
                                          cudaStream_t) {
  const size_t bytes = count * size_of(type);
  agree(group, "allreduce", bytes, type, op);
  if (group->ranks == 1) return alone(to, from, bytes);
  pass(group, from, bytes, [&](size_t at, size_t part) {
    reduce_slots(group, static_cast<char*>(to) + at, part, type, op);
  });
  return ncclSuccess;
}

STANDIN_EXPORT ncclResult_t ncclReduce(const void* from, void* to, size_t count,
                                       ncclDataType_t type, ncclRedOp_t op, int root,
                                       ncclComm_t group, cudaStream_t) {
  const size_t bytes = count * size_of(type);
  agree(group, "reduce", bytes, type, op, root);
  if (group->ranks == 1) return alone(to, from, bytes);
  pass(group, from, bytes, [&](size_t at, size_t part) {
    if (group->rank == root) reduce_slots(group, static_cast<char*>(to) + at, part, type, op);
  });
  return ncclSuccess;
}

STANDIN_EXPORT ncclResult_t ncclBroadcast(const void* from, void* to, size_t count,
                                          ncclDataType_t type, int root, ncclComm_t group,
                                          cudaStream_t) {
  const size_t bytes = count * size_of(type);
  agree(group, "broadcast", bytes, type, -1, root);
  if (group->ranks == 1) return alone(to, from, bytes);
  pass(group, group->rank == root ? from : nullptr, bytes, [&](size_t at, size_t part) {
    std::memcpy(static_cast<char*>(to) + at, group->slot(root), part);
  });
  return ncclSuccess;
}
STANDIN_EXPORT ncclResult_t ncclBcast(void* buffer, size_t count, ncclDataType_t type, int root,
                                      ncclComm_t group, cudaStream_t stream) {
  return ncclBroadcast(buffer, buffer, count, type, root, group, stream);
}

STANDIN_EXPORT ncclResult_t ncclAllGather(const void* from, void* to, size_t count,
                                          ncclDataType_t type, ncclComm_t group, cudaStream_t) {
  const size_t bytes = count * size_of(type);
  agree(group, "allgather", bytes, type);
  if (group->ranks == 1) return alone(to, from, bytes);
  pass(group, from, bytes, [&](size_t at, size_t part) {
    for (int rank = 0; rank < group->ranks; ++rank) {
      std::memcpy(static_cast<char*>(to) + rank * bytes + at, group->slot(rank), part);
    }
  });
  return ncclSuccess;
}

STANDIN_EXPORT ncclResult_t ncclReduceScatter(const void* from, void* to, size_t count,
                                              ncclDataType_t type, ncclRedOp_t op,
                                              ncclComm_t group, cudaStream_t) {
  const size_t bytes = count * size_of(type);
  agree(group, "reducescatter", bytes, type, op);
  if (group->ranks == 1) return alone(to, from, bytes);
  for (int target = 0; target < group->ranks; ++target) {
    const char* piece = static_cast<const char*>(from) + target * bytes;
    pass(group, piece, bytes, [&](size_t at, size_t part) {
      if (group->rank == target) {
        reduce_slots(group, static_cast<char*>(to) + at, part, type, op);
      }
    });
  }
  return ncclSuccess;
}
