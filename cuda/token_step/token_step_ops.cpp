// Schema of the steps of models (the contract with src/rwkv_train/ops/token_step): one token of
// each of a few sequences through all blocks of RWKV-4, 5, 6 or 7, on the CPU.
//
// tokens: [B, 1] in int64.  embedding: [V, C].  state: all tensors of the model's, in fp32, block
// by block.  vectors, matrices, scales, eps: see Parameters; the vectors begin with the norm behind
// the embedding, and end with the last one. Returns the head's input, [B, 1, C] in the embedding's
// dtype, and the tensors of the state after the token.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/stack.h>
#include <torch/library.h>

#include "rwkv4_step.h"
#include "rwkv5_6_step.h"
#include "rwkv7_step.h"

namespace rwkv::step {
namespace {

void embed(const Tensor& tokens, const Tensor& embedding, TokenWalk& walk) {
  const int64_t C = walk.width;
  const DType dtype = dtype_of(embedding, "embedding");
  const char* const table = static_cast<const char*>(embedding.const_data_ptr());
  for (int64_t b = 0; b < walk.batch; ++b) {
    const int64_t token = tokens.const_data_ptr<int64_t>()[b];
    TORCH_CHECK_INDEX(token >= 0 && token < embedding.size(0), "token ", token, " is outside of ",
                      embedding.size(0), " rows of the embedding");
    load_row<float>(table, dtype, token * C, C, walk.stream + b * C);
  }
  std::copy_n(walk.normal().const_data_ptr<float>(), walk.batch * C, walk.stream);
}

// kBlock(walk, state): one block, from the tensors of its state to those after it.
template <std::vector<Tensor> (*kBlock)(TokenWalk&, at::TensorList), int kStateTensors>
std::vector<Tensor> step(const Tensor& tokens, const Tensor& embedding, at::TensorList state,
                         at::TensorList vectors, at::TensorList matrices, at::TensorList scales,
                         c10::ArrayRef<double> eps) {
  const int64_t B = tokens.size(0), blocks = state.size() / kStateTensors;
  TORCH_CHECK(tokens.dim() == 2 && tokens.size(1) == 1 && B > 0 && B <= kMostMatvecRows,
              "tokens must be [B, 1] with B from 1 to ", kMostMatvecRows, ", got ", tokens.sizes());
  CHECK_DTYPE(tokens, at::kLong);
  TORCH_CHECK(blocks > 0 && matrices.size() == scales.size(),
              "no block, or a matrix without a scale");
  // What follows has no derivative, and need not look for it at every operator.
  const at::AutoDispatchBelowADInplaceOrView no_gradients;
  const Parameters parameters{vectors, matrices, scales, eps};
  const Tensor ids = tokens.contiguous();
  TokenWalk walk(parameters, blocks, B, embedding.size(1));
  embed(ids, embedding, walk);
  std::vector<Tensor> found(1);
  for (int64_t n = 0; n < blocks; ++n) {
    walk.start_block();
    for (Tensor& after : kBlock(walk, state.slice(n * kStateTensors, kStateTensors))) {
      found.push_back(std::move(after));
    }
  }
  const Tensor normal = walk.normal();
  found[0] = at::empty({B, 1, walk.width}, embedding.options());
  store_row<float>(found[0].mutable_data_ptr(), dtype_of(embedding, "embedding"), 0, normal.numel(),
                   normal.const_data_ptr<float>());
  return found;
}

}  // namespace
}  // namespace rwkv::step

TORCH_LIBRARY_FRAGMENT(rwkv, m) {
  for (const char* name : {"rwkv4_step", "rwkv5_step", "rwkv6_step", "rwkv7_step"}) {
    const std::string schema =
        "(Tensor tokens, Tensor embedding, Tensor[] state, Tensor[] vectors, Tensor[] matrices, "
        "Tensor[] scales, float[] eps) -> Tensor[]";
    m.def((name + schema).c_str());
  }
}

TORCH_LIBRARY_IMPL(rwkv, CPU, m) {
  using namespace rwkv::step;
  m.impl("rwkv4_step", &step<rwkv4_block, 5>);
  m.impl("rwkv5_step", &step<rwkv5_block, 3>);
  m.impl("rwkv6_step", &step<rwkv6_block, 3>);
  m.impl("rwkv7_step", &step<rwkv7_block, 3>);
}
