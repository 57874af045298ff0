// Schema of the operators of RWKV-7's keys (the contract with src/rwkv_train/ops/keys/native.py)
// and their host code for the CPU.
//
// base, removal, replacement: [H, N] in the computing type; gvectors: [3, H, N], their gradients.
#include <torch/library.h>

#include "../common/cpu/block_sums.h"
#include "../common/cpu/parallel.h"
#include "keys_host.h"

namespace rwkv {
namespace {

using at::Tensor;
using std::optional;

// Steps of share_tasks; a sigmoid costs about as much as this many multiply-adds.
int64_t keys_work(const KeysSizes& p) {
  return 8 * p.batch * p.time * p.heads * p.size / keys_tasks(p);
}

std::tuple<Tensor, Tensor, Tensor> keys_forward(const Tensor& key, const Tensor& logits,
                                                const Tensor& base, const Tensor& removal,
                                                const Tensor& replacement) {
  const auto call = keys_forward_call(key, logits, base, removal, replacement);
  const KeysForward& p = call.params;
  share_tasks(keys_tasks(p), keys_work(p),
              [&](int64_t begin, int64_t end) { keys_forward_cpu(p, begin, end); });
  return {call.k, call.a, call.b};
}

std::tuple<Tensor, Tensor, Tensor> keys_backward(
    const optional<Tensor>& gk, const optional<Tensor>& ga, const optional<Tensor>& gb,
    const Tensor& key, const Tensor& logits, const Tensor& base, const Tensor& removal,
    const Tensor& replacement) {
  const auto call =
      keys_backward_call(gk, ga, gb, key, logits, base, removal, replacement, 1);
  const KeysBackward& p = call.params;
  share_tasks(keys_tasks(p), 2 * keys_work(p),
              [&](int64_t begin, int64_t end) { keys_backward_cpu(p, begin, end); });
  return {call.gkey, call.glogits, sum_over_blocks(call.sums)};
}

}  // namespace
}  // namespace rwkv

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  m.def(
      "keys_forward(Tensor key, Tensor logits, Tensor base, Tensor removal, Tensor replacement) -> "
      "(Tensor k, Tensor a, Tensor b)");
  m.def(
      "keys_backward(Tensor? gk, Tensor? ga, Tensor? gb, Tensor key, Tensor logits, Tensor base, "
      "Tensor removal, Tensor replacement) -> (Tensor gkey, Tensor glogits, Tensor gvectors)");
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  m.impl("keys_forward", &rwkv::keys_forward);
  m.impl("keys_backward", &rwkv::keys_backward);
}
