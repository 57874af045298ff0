// Runs every CPU kernel at awkward sizes; built with AddressSanitizer by test_native_sanitizer.py.
// It checks no numbers: an access outside the memory of a tensor or of a piece of scratch aborts.
#include <cstdio>
#include <random>
#include <vector>

#include "common/cpu/denormals.h"
#include "head_norm_gate/head_norm_gate.h"
#include "embedding_norm/embedding_norm.h"
#include "head_loss/head_loss.h"
#include "keys/keys.h"
#include "norm_shift/norm_shift.h"
#include "sigmoid_gate/sigmoid_gate.h"
#include "split_tanh/split_tanh.h"
#include "squared_relu/squared_relu.h"
#include "value_residual/value_residual.h"
#include "wkv4/wkv4.h"
#include "wkv4_piece/wkv4_piece.h"
#include "wkv5_6/wkv5_6_cpu.h"
#include "wkv5_6_piece/wkv5_6_piece.h"
#include "wkv7/wkv7.h"
#include "wkv7_piece/wkv7_piece.h"

using namespace rwkv;

template <typename T> struct Data {
  std::mt19937 random{1};

  std::vector<T> normal(int64_t count, double scale) {
    std::normal_distribution<double> distribution(0, scale);
    std::vector<T> x(count);
    for (T& element : x) element = static_cast<T>(distribution(random));
    return x;
  }
};

// Inputs and results, each in memory of its own; B = 2 and H = 3.
template <typename T> struct Tensors {
  int64_t B = 2, H = 3, n, square;
  Data<T> data;
  std::vector<T> r, k, v, w, a, b, gy, u, state, y, left, gr, gk, gv, gw, ga, gb, gu, ghead, gstate;
  std::vector<T> base, gbase;
  std::vector<char> reset;

  Tensors(int64_t time, int64_t size) : n(B * time * H * size), square(B * H * size * size) {
    for (auto* x : {&r, &k, &v, &w, &gy}) *x = data.normal(n, 0.5);
    for (auto* x : {&a, &b}) *x = data.normal(n, 0.05);
    for (auto* x : {&u, &base}) *x = data.normal(H * size, 0.5);
    state = data.normal(square, 0.5);
    for (auto* x : {&y, &gr, &gk, &gv, &gw, &ga, &gb}) x->resize(n);
    for (auto* x : {&left, &gstate}) x->resize(square);
    for (auto* x : {&gu, &ghead, &gbase}) x->resize(B * H * size);
    for (int64_t i = 0; i < B * time; ++i) reset.push_back(data.random() % 9 == 0);
  }
};

template <typename T> void run_heads(int64_t time, int64_t size, bool with_options) {
  Tensors<T> x(time, size);
  HeadSizes sizes{x.B, time, x.H, size, 32, (time + 31) / 32, kDTypeOf<T>, kDTypeOf<T>,
                  kDTypeOf<T>};
  std::vector<T> kept(x.square * sizes.kept);
  const void* state = with_options ? x.state.data() : nullptr;
  const bool* reset = with_options ? reinterpret_cast<const bool*>(x.reset.data()) : nullptr;
  Wkv5_6Forward f{};
  static_cast<HeadSizes&>(f) = sizes;
  f.r = x.r.data(), f.k = x.k.data(), f.v = x.v.data(), f.w = x.w.data(), f.u = x.u.data();
  f.state = state, f.reset = reset, f.y = x.y.data(), f.final_state = x.left.data();
  f.checkpoints = kept.data(), f.base = with_options ? x.base.data() : nullptr;
  Wkv5_6Backward g{};
  static_cast<HeadSizes&>(g) = sizes;
  g.r = f.r, g.k = f.k, g.v = f.v, g.w = f.w, g.u = f.u, g.reset = reset;
  g.checkpoints = kept.data(), g.gy = x.gy.data(), g.gfinal_state = state;
  g.gr = x.gr.data(), g.gk = x.gk.data(), g.gv = x.gv.data(), g.gw = x.gw.data();
  g.gu = x.gu.data(), g.gstate = x.gstate.data(), g.gbase = x.gbase.data(), g.base = f.base;
  if (!with_options) f.final_state = nullptr, g.with_gstate = false;
  Wkv5_6Forward f5 = f;
  Wkv5_6Backward g5 = g;
  f5.base = g5.base = nullptr, f5.w = g5.w = x.u.data(), g5.gw = x.ghead.data();
  Wkv7Forward f7{};
  static_cast<HeadSizes&>(f7) = sizes;
  f7.r = f.r, f7.k = f.k, f7.v = f.v, f7.w = f.w, f7.a = x.a.data(), f7.b = x.b.data();
  f7.state = state, f7.reset = reset, f7.y = x.y.data(), f7.final_state = x.left.data();
  std::vector<T> s(x.B * time * x.H), gbonus(x.gu);
  if (with_options) f7.bonus = x.u.data(), f7.s = s.data();
  f7.checkpoints = kept.data(), f7.base = f.base, f7.final_state = f.final_state;
  Wkv7Backward g7{};
  static_cast<HeadSizes&>(g7) = sizes;
  g7.r = f.r, g7.k = f.k, g7.v = f.v, g7.w = f.w, g7.a = f7.a, g7.b = f7.b, g7.reset = reset;
  g7.checkpoints = kept.data(), g7.gy = x.gy.data(), g7.gfinal_state = state;
  g7.gr = x.gr.data(), g7.gk = x.gk.data(), g7.gv = x.gv.data(), g7.gw = x.gw.data();
  g7.ga = x.ga.data(), g7.gb = x.gb.data(), g7.gstate = x.gstate.data();
  g7.base = f.base, g7.gbase = x.gbase.data(), g7.with_gstate = g.with_gstate;
  if (with_options) g7.bonus = f7.bonus, g7.gs = f7.s, g7.gbonus = gbonus.data();
  for (int64_t most = 1; most <= 3; most += 2) {
    const int64_t tasks = x.B * ((x.H + most - 1) / most);
    Wkv5_6CpuKernels<false>::forward(f5, most, 0, tasks);
    Wkv5_6CpuKernels<false>::backward(g5, most, 0, tasks);
    Wkv5_6CpuKernels<true>::forward(f, most, 0, tasks);
    Wkv5_6CpuKernels<true>::backward(g, most, 0, tasks);
    wkv7_forward_cpu(f7, most, 0, tasks);
    wkv7_backward_cpu(g7, most, 0, tasks);
  }
}

template <typename T> void run_pieces(int64_t time, int64_t size, bool with_options) {
  Tensors<T> x(time, size);
  const HeadSizes sizes{x.B, time, x.H, size, time, 0, kDTypeOf<T>, kDTypeOf<T>, kDTypeOf<T>};
  const bool* reset = with_options ? reinterpret_cast<const bool*>(x.reset.data()) : nullptr;
  for (bool backwards : {false, true}) {
    Wkv5_6Piece p{};
    static_cast<HeadSizes&>(p) = sizes;
    p.keys = x.k.data(), p.values = x.v.data(), p.w = x.w.data(), p.reset = reset;
    p.base = with_options ? x.base.data() : nullptr;
    p.decay_per_token = true, p.backwards = backwards;
    p.decay = x.gu.data(), p.matrix = x.left.data();
    wkv5_6_piece_cpu(p, 0, x.B * x.H);
    p.decay_per_token = false, p.w = x.u.data(), p.base = nullptr;
    wkv5_6_piece_cpu(p, 0, x.B * x.H);
    Wkv7Piece p7{};
    static_cast<HeadSizes&>(p7) = sizes;
    p7.keys = x.k.data(), p7.values = x.v.data(), p7.w = x.w.data(), p7.reset = reset;
    p7.a = x.a.data(), p7.b = x.b.data(), p7.base = with_options ? x.base.data() : nullptr;
    p7.backwards = backwards, p7.transition = x.gstate.data(), p7.matrix = x.left.data();
    wkv7_piece_cpu(p7, 0, x.B * x.H);
  }
  std::vector<T> sums(x.B * 3 * size);
  Wkv4Piece p4{};
  static_cast<Wkv4Sizes&>(p4) = {x.B, time, size, time, 0, kDTypeOf<T>};
  p4.w = x.u.data(), p4.k = x.k.data(), p4.v = x.v.data(), p4.reset = reset;
  p4.sums = sums.data();
  wkv4_piece_cpu(p4, 0, x.B * ((size + kWkv4Channels - 1) / kWkv4Channels));
}

template <typename T> void run_channels(int64_t time, int64_t width, bool with_options) {
  Tensors<T> x(time, width);
  const Wkv4Sizes sizes{x.B, time, width, 16, (time + 15) / 16, kDTypeOf<T>};
  std::vector<T> kept(x.B * sizes.kept * 3 * width), state = x.data.normal(x.B * 3 * width, 0.5);
  std::vector<T> left(state), gstate(state), gw(x.B * width), gu(x.B * width);
  Wkv4Forward f{};
  static_cast<Wkv4Sizes&>(f) = sizes;
  f.w = f.u = x.u.data(), f.k = x.k.data(), f.v = x.v.data(), f.y = x.y.data();
  f.final_state = left.data(), f.checkpoints = kept.data();
  f.state = with_options ? state.data() : nullptr;
  f.reset = with_options ? reinterpret_cast<const bool*>(x.reset.data()) : nullptr;
  Wkv4Backward g{};
  static_cast<Wkv4Sizes&>(g) = sizes;
  g.w = f.w, g.u = f.u, g.k = f.k, g.v = f.v, g.reset = f.reset, g.checkpoints = kept.data();
  g.gy = x.gy.data(), g.gfinal_state = f.state, g.gw = gw.data(), g.gu = gu.data();
  g.gk = x.gk.data(), g.gv = x.gv.data(), g.gstate = gstate.data();
  const int64_t tasks = x.B * ((width + kWkv4Channels - 1) / kWkv4Channels);
  wkv4_forward_cpu(f, 0, tasks);
  wkv4_backward_cpu(g, 0, tasks);
}

template <typename T> void run_shifts(int64_t time, int64_t width, bool with_options) {
  const int64_t B = 2, n = B * time * width, blocks = B * sum_blocks_of_row(time);
  Tensors<T> rows(time, width);
  const bool* reset = with_options ? reinterpret_cast<const bool*>(rows.reset.data()) : nullptr;
  for (int64_t count : {int64_t{1}, int64_t{kMostShifted}}) {
    Data<T> data;
    std::vector<T> x = data.normal(n, 1), out(x), gate(x), stream(n), mixes(count * width, 1);
    std::vector<T> moves = data.normal(count * n, 1), statistics(2 * B * time), vector(width, 1);
    std::vector<T> last(B * width, 1), h_last(last), glast(last), gx(n), gout(n), ggate(n);
    std::vector<T> gmoves(count * n), sums(blocks * (count + 2) * width);
    std::vector<std::vector<T>> y(count, std::vector<T>(n));
    NormShiftForward f{};
    static_cast<NormShiftSizes&>(f) = {B, time, width, count, kDTypeOf<T>, kDTypeOf<T>, 1e-5};
    f.weight = f.bias = vector.data(), f.mixes = mixes.data(), f.reset = reset, f.x = x.data();
    if (with_options) f.out = out.data(), f.gate = gate.data(), f.last = last.data();
    f.stream = with_options ? stream.data() : nullptr;
    f.statistics = statistics.data(), f.h_last = h_last.data();
    NormShiftBackward g{};
    static_cast<NormShiftInputs&>(g) = f;
    g.stream = with_options ? stream.data() : x.data(), g.statistics = statistics.data();
    for (int64_t i = 0; i < count; ++i) f.y[i] = y[i].data(), g.gy[i] = y[i].data();
    g.gx = gx.data(), g.sums = sums.data(), g.glast = with_options ? glast.data() : nullptr;
    if (with_options) {
      g.gout = gout.data(), g.ggate = ggate.data(), g.gstream = x.data(), g.gnormal = x.data();
      g.gh_last = last.data();
    }
    norm_shift_forward_cpu(f, 0, blocks);
    norm_shift_backward_cpu(g, 0, blocks);
    // The same tokens mixed again, with moves.
    NormShiftForward f2 = f;
    f2.x = g.stream, f2.known = statistics.data(), f2.moves = moves.data();
    f2.out = f2.gate = nullptr, f2.stream = f2.statistics = f2.h_last = nullptr;
    NormShiftBackward g2{};
    static_cast<NormShiftInputs&>(g2) = f2;
    g2.stream = g.stream, g2.statistics = g.statistics, g2.sums = g.sums, g2.glast = g.glast;
    for (int64_t i = 0; i < count; ++i) g2.gy[i] = y[i].data();
    g2.gnormal_out = gx.data(), g2.gmoves = gmoves.data();
    norm_shift_forward_cpu(f2, 0, blocks);
    norm_shift_backward_cpu(g2, 0, blocks);
    // And with moves that a product of rank 3 makes.
    std::vector<T> low = data.normal(count * 3 * B * time, 1), up = data.normal(count * 3 * width, 1);
    f2.moves = nullptr, f2.low = low.data(), f2.up = up.data(), f2.rank = 3;
    g2.moves = nullptr, g2.low = low.data(), g2.up = up.data(), g2.rank = 3;
    norm_shift_forward_cpu(f2, 0, blocks);
    norm_shift_backward_cpu(g2, 0, blocks);
  }
}

template <typename T> void run_keys(int64_t time, int64_t size) {
  const int64_t B = 2, H = 3, n = B * time * H * size;
  Data<T> data;
  std::vector<T> key = data.normal(n, 1), logits = data.normal(n, 1), vector(H * size, 1);
  std::vector<T> k(n), a(n), b(n), sums(B * sum_blocks_of_row(time) * kKeysVectors * H * size);
  KeysForward f{};
  static_cast<KeysSizes&>(f) = {B, time, H, size, kDTypeOf<T>};
  f.key = key.data(), f.logits = logits.data();
  f.base = f.removal = f.replacement = vector.data();
  f.k = k.data(), f.a = a.data(), f.b = b.data();
  keys_forward_cpu(f, 0, keys_tasks(f));
  KeysBackward g{};
  static_cast<KeysSizes&>(g) = f;
  g.gk = key.data(), g.gb = logits.data(), g.key = f.key, g.logits = f.logits, g.base = f.base;
  g.removal = f.removal, g.replacement = f.replacement;
  g.gkey = a.data(), g.glogits = b.data(), g.sums = sums.data();
  keys_backward_cpu(g, 0, keys_tasks(g));
}

template <typename T> void run_residual(int64_t time, int64_t width) {
  const int64_t B = 2, n = B * time * width;
  Data<T> data;
  std::vector<T> value = data.normal(n, 1), first = data.normal(n, 1), base(width, 1);
  std::vector<T> v(n), gfirst(n), glogits(n), sums(B * sum_blocks_of_row(time) * width);
  ValueResidualForward f{};
  static_cast<ValueResidualSizes&>(f) = {B, time, width, kDTypeOf<T>};
  f.value = value.data(), f.first = f.logits = first.data(), f.base = base.data(), f.v = v.data();
  value_residual_forward_cpu(f, 0, value_residual_tasks(f));
  ValueResidualBackward g{};
  static_cast<ValueResidualSizes&>(g) = f;
  g.gv = g.gagain = value.data(), g.value = f.value, g.first = g.logits = f.first, g.base = f.base;
  g.gvalue = v.data(), g.gfirst = gfirst.data(), g.glogits = glogits.data(), g.sums = sums.data();
  value_residual_backward_cpu(g, 0, value_residual_tasks(g));
}

template <typename T> void run_pointwise(int64_t count) {
  Data<T> data;
  std::vector<T> x = data.normal(count, 1), one(count), other(count);
  const DType type = kDTypeOf<T>;
  squared_relu_forward_cpu({count, type, {x.data()}, {one.data()}}, 0, count);
  squared_relu_backward_cpu({count, type, {x.data(), x.data()}, {one.data()}}, 0, count);
  sigmoid_gate_forward_cpu({count, type, {x.data(), x.data()}, {one.data()}}, 0, count);
  sigmoid_gate_backward_cpu(
      {count, type, {x.data(), x.data(), x.data()}, {one.data(), other.data()}}, 0, count);
}

template <typename T> void run_split_tanh(int64_t tokens, int64_t parts, int64_t rank) {
  Data<T> data;
  std::vector<T> x = data.normal(tokens * parts * rank, 1), y(x), gx(x);
  const int64_t tasks = (tokens + kSplitTanhTokens - 1) / kSplitTanhTokens;
  SplitTanhForward f{};
  static_cast<SplitTanhSizes&>(f) = {tokens, parts, rank, kDTypeOf<T>};
  f.x = x.data(), f.y = y.data();
  split_tanh_forward_cpu(f, 0, tasks);
  SplitTanhBackward g{};
  static_cast<SplitTanhSizes&>(g) = f;
  g.gy = x.data(), g.y = y.data(), g.gx = gx.data();
  split_tanh_backward_cpu(g, 0, tasks);
}

template <typename T> void run_head_norms(int64_t time, int64_t size, bool with_options) {
  const int64_t B = 2, H = 3, width = H * size;
  Tensors<T> x(time, size);
  HeadNormForward f{};
  static_cast<HeadNormSizes&>(f) = {B, time, H, size, kDTypeOf<T>, with_options, 1e-3};
  std::vector<T> s = x.data.normal(B * time * H, 1), gs(s), sums(f.blocks() * 2 * width);
  f.y = x.r.data(), f.g = x.k.data(), f.weight = f.bias = x.u.data(), f.o = x.y.data();
  if (with_options) f.v = x.v.data(), f.s = s.data();
  HeadNormBackward g{};
  static_cast<HeadNormSizes&>(g) = f;
  g.go = x.gy.data(), g.y = f.y, g.g = f.g, g.weight = f.weight, g.bias = f.bias;
  g.v = f.v, g.s = f.s, g.gy = x.gr.data(), g.gg = x.gk.data(), g.sums = sums.data();
  if (with_options) g.gv = x.gv.data(), g.gs = gs.data();
  head_norm_gate_forward_cpu(f, 0, f.blocks());
  head_norm_gate_backward_cpu(g, 0, g.blocks());
}

template <typename T> void run_logits(int64_t rows, int64_t vocabulary, bool with_options) {
  Data<T> data;
  std::vector<T> logits = data.normal(rows * vocabulary, 1), extra = logits, gextra(logits.size());
  std::vector<T> mask(rows, 1), losses(rows), loss(1), total(1);
  std::vector<double> sums(2 * ((rows + kHeadLossBlock - 1) / kHeadLossBlock));
  std::vector<int64_t> targets;
  for (int64_t i = 0; i < rows; ++i) targets.push_back(data.random() % vocabulary);
  targets.back() = vocabulary - 1;
  const DType type = kDTypeOf<T>;
  HeadLossRows f{};
  static_cast<HeadLossSizes&>(f) = {rows, vocabulary, type, type, type, true, 0.0};
  f.logits = logits.data(), f.targets = targets.data(), f.losses = losses.data();
  if (with_options) {
    f.mask = mask.data(), f.extra = extra.data(), f.extra_gradient = gextra.data();
  }
  head_loss_rows_cpu(f, 0, rows);
  HeadLossMean g{};
  static_cast<HeadLossSizes&>(g) = f;
  g.losses = losses.data(), g.mask = f.mask, g.loss = loss.data(), g.total = total.data();
  g.sums = sums.data();
  head_loss_mean_cpu(g);
}

// All places but the last hold the first token, the last one the last.
template <typename T> void run_embedding(int64_t tokens, int64_t width, bool with_options) {
  Data<T> data;
  std::vector<int64_t> ids(tokens, 0), order(tokens), distinct = {0, 4}, starts = {0, tokens - 1};
  ids.back() = 4, starts.push_back(tokens);
  for (int64_t i = 0; i < tokens; ++i) order[i] = i;
  std::vector<T> table = data.normal(5 * width, 1), gtable(table), weight(table), gy, y, sums;
  gy = data.normal(tokens * width, 1), y = gy, sums.resize(2 * width), weight.resize(width);
  EmbeddingNormForward f{};
  static_cast<EmbeddingNormSizes&>(f) = {tokens, 5, width, kDTypeOf<T>, 1e-5};
  f.ids = ids.data(), f.table = table.data(), f.weight = f.bias = weight.data(), f.y = y.data();
  embedding_norm_forward_cpu(f, 0, tokens);
  EmbeddingNormBackward g{};
  static_cast<EmbeddingNormSizes&>(g) = f;
  g.gy = gy.data(), g.order = order.data(), g.table = f.table, g.weight = f.weight;
  g.gtable = with_options ? gtable.data() : nullptr, g.sums = sums.data();
  embedding_norm_backward_cpu(g, distinct.data(), starts.data(), 2, 0, 1);
}

template <typename T> void run_all() {
  const FlushToZeroGuard flush_to_zero;
  for (int64_t size : {1, 5, 33}) {
    for (int64_t time : {1, 40}) {
      run_keys<T>(time + 30, size), run_residual<T>(time + 30, size + 1000);
      run_pointwise<T>(time * size);
      for (bool with_options : {false, true}) {
        run_heads<T>(time, size, with_options);
        run_pieces<T>(time, size, with_options);
        run_head_norms<T>(time, size, with_options);
        run_channels<T>(time, size + 60, with_options);
        run_shifts<T>(time + 30, size + 230, with_options);
        run_logits<T>(time + 30, size == 33 ? 1025 : size, with_options);
        run_embedding<T>(time * 8, size, with_options);
      }
    }
  }
}

int main() {
  run_all<float>();
  run_all<double>();
  std::puts("clean");
}
