// One call of a CPU kernel, forward and backward, as a program without torch: it runs wherever a
// compiler can build for, under an emulator too. test_native_targets.py says what comes in.
//
//     program OPERATOR B T H N DTYPE < inputs, state, reset, gradients of y and the final state
//                                    > y, final state, gradients of the inputs and of the state
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "common/cpu/denormals.h"
#include "wkv4/wkv4.h"
#include "wkv5_6/wkv5_6_cpu.h"
#include "wkv7/wkv7.h"

using namespace rwkv;

constexpr int64_t kCheckpointInterval = 16;

using Bytes = std::vector<char>;

// Reads inputs and hands out results, which `give` writes in the order they were asked for.
struct Streams {
  std::vector<Bytes> inputs, results;

  const void* take(int64_t bytes) {
    inputs.emplace_back(bytes);
    if (std::fread(inputs.back().data(), 1, bytes, stdin) != static_cast<size_t>(bytes)) {
      std::fputs("the inputs are too short\n", stderr);
      std::exit(2);
    }
    return inputs.back().data();
  }
  const bool* take_marks(int64_t count) { return static_cast<const bool*>(take(count)); }
  void* result(int64_t bytes) {
    results.emplace_back(bytes, '\xff');
    return results.back().data();
  }
  void give() const {
    for (const Bytes& x : results) std::fwrite(x.data(), 1, x.size(), stdout);
  }
};

struct Sizes {
  int64_t batch, time, heads, size, kept;
  DType dtype;
  int64_t element, wide;  // bytes of a number of the inputs' type and of the computing type

  int64_t tokens() const { return batch * time; }
  int64_t sequence() const { return tokens() * heads * size; }
  int64_t row() const { return heads * size; }
  int64_t states() const { return batch * heads * size * size; }
  HeadSizes of_heads() const {
    const DType w = dtype == DType::kDouble ? DType::kDouble : DType::kFloat;
    return {batch, time, heads, size, kCheckpointInterval, kept, dtype, w, w};
  }
};

void run_wkv4(const Sizes& s, Streams& io) {
  const int64_t sequence = s.sequence() * s.element, row = s.row() * s.wide;
  const int64_t state = 3 * s.batch * row;
  const Wkv4Sizes sizes{s.batch, s.time, s.row(), kCheckpointInterval, s.kept, s.dtype};
  Bytes checkpoints(s.kept * state);
  Wkv4Forward f{};
  Wkv4Backward g{};
  static_cast<Wkv4Sizes&>(f) = sizes, static_cast<Wkv4Sizes&>(g) = sizes;
  f.w = g.w = io.take(row), f.u = g.u = io.take(row);
  f.k = g.k = io.take(sequence), f.v = g.v = io.take(sequence);
  f.state = io.take(state), f.reset = g.reset = io.take_marks(s.tokens());
  g.gy = io.take(sequence), g.gfinal_state = io.take(state);
  f.y = io.result(sequence), f.final_state = io.result(state);
  f.checkpoints = checkpoints.data(), g.checkpoints = checkpoints.data();
  g.gw = io.result(s.batch * row), g.gu = io.result(s.batch * row);
  g.gk = io.result(sequence), g.gv = io.result(sequence), g.gstate = io.result(state);
  const int64_t tasks = s.batch * ((s.row() + kWkv4Channels - 1) / kWkv4Channels);
  wkv4_forward_cpu(f, 0, tasks);
  wkv4_backward_cpu(g, 0, tasks);
}

void run_wkv5_6(const Sizes& s, Streams& io, bool decays_by_token) {
  const int64_t sequence = s.sequence() * s.element, row = s.row() * s.wide;
  const int64_t state = s.states() * s.wide, decays = decays_by_token ? s.sequence() * s.wide : row;
  Bytes checkpoints(s.kept * state);
  Wkv5_6Forward f{};
  Wkv5_6Backward g{};
  static_cast<HeadSizes&>(f) = s.of_heads(), static_cast<HeadSizes&>(g) = s.of_heads();
  f.r = g.r = io.take(sequence), f.k = g.k = io.take(sequence), f.v = g.v = io.take(sequence);
  f.w = g.w = io.take(decays), f.u = g.u = io.take(row);
  if (decays_by_token) f.base = g.base = io.take(row);
  f.state = io.take(state), f.reset = g.reset = io.take_marks(s.tokens());
  g.gy = io.take(sequence), g.gfinal_state = io.take(state);
  f.y = io.result(sequence), f.final_state = io.result(state);
  f.checkpoints = checkpoints.data(), g.checkpoints = checkpoints.data();
  g.gr = io.result(sequence), g.gk = io.result(sequence), g.gv = io.result(sequence);
  g.gw = io.result(decays_by_token ? decays : s.batch * row), g.gu = io.result(s.batch * row);
  if (decays_by_token) g.gbase = io.result(s.batch * row);
  g.gstate = io.result(state);
  const int64_t tasks = s.batch * s.heads;
  decays_by_token ? Wkv5_6CpuKernels<true>::forward(f, 1, 0, tasks)
                  : Wkv5_6CpuKernels<false>::forward(f, 1, 0, tasks);
  decays_by_token ? Wkv5_6CpuKernels<true>::backward(g, 1, 0, tasks)
                  : Wkv5_6CpuKernels<false>::backward(g, 1, 0, tasks);
}

void run_wkv7(const Sizes& s, Streams& io) {
  const int64_t sequence = s.sequence() * s.element, decays = s.sequence() * s.wide;
  const int64_t row = s.row() * s.wide;
  const int64_t state = s.states() * s.wide;
  Bytes checkpoints(s.kept * state);
  Wkv7Forward f{};
  Wkv7Backward g{};
  static_cast<HeadSizes&>(f) = s.of_heads(), static_cast<HeadSizes&>(g) = s.of_heads();
  f.r = g.r = io.take(sequence), f.w = g.w = io.take(decays), f.k = g.k = io.take(sequence);
  f.v = g.v = io.take(sequence), f.a = g.a = io.take(sequence), f.b = g.b = io.take(sequence);
  f.base = g.base = io.take(row);
  f.state = io.take(state), f.reset = g.reset = io.take_marks(s.tokens());
  g.gy = io.take(sequence), g.gfinal_state = io.take(state);
  f.y = io.result(sequence), f.final_state = io.result(state);
  f.checkpoints = checkpoints.data(), g.checkpoints = checkpoints.data();
  g.gr = io.result(sequence), g.gw = io.result(decays), g.gk = io.result(sequence);
  g.gv = io.result(sequence), g.ga = io.result(sequence), g.gb = io.result(sequence);
  g.gbase = io.result(s.batch * row);
  g.gstate = io.result(state);
  wkv7_forward_cpu(f, 1, 0, s.batch * s.heads);
  wkv7_backward_cpu(g, 1, 0, s.batch * s.heads);
}

int main(int count, char** words) {
  if (count != 7) return 2;
  const std::string op = words[1];
  int64_t numbers[5];
  for (int i = 0; i < 5; ++i) numbers[i] = std::atoll(words[i + 2]);
  const auto [batch, time, heads, size, type] = numbers;
  const auto dtype = static_cast<DType>(type);
  const int64_t wide = dtype == DType::kDouble ? 8 : 4;
  const bool is_half = dtype == DType::kHalf || dtype == DType::kBFloat16;
  const int64_t kept = (time + kCheckpointInterval - 1) / kCheckpointInterval;
  const Sizes s{batch, time, heads, size, kept, dtype, is_half ? 2 : wide, wide};
  Streams io;
  const FlushToZeroGuard flush_to_zero;
  if (op == "wkv4") run_wkv4(s, io);
  else if (op == "wkv7") run_wkv7(s, io);
  else run_wkv5_6(s, io, op == "wkv6");
  io.give();
}
