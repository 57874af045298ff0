"""Group norm with one group per head, the current token's bonus, and a gate, in one pass.

With the mean and variance of y over the N channels of a head,

    m = (y - mean) / sqrt(variance + eps) * weight + bias + s v        o = m act(g)

act is the identity (RWKV-7) or silu (RWKV-5 and 6), and the bonus s v is RWKV-7's: s is one number
per token and head.

| backend     | serves                                            | memory kept for backward    |
|-------------|---------------------------------------------------|-----------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | the arguments               |
| `reference` | any device, torch operators one by one            | fp32 copies at every step   |

CUDA kernels serve heads of 32, 64, 128 and 256 channels. All is computed in fp32 (fp64), and every
result is rounded once.

Source: RWKV-7 paper (Goose) and RWKV-5/6 paper (Eagle and Finch), the end of the time mix.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.arguments import check_floats, check_sequences, describe_call, prepare
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch

BACKENDS = backends_of("head_norm_gate", "native", "reference")
IDENTITY, SILU = "identity", "silu"


def head_norm_gate(
    y: Tensor,
    g: Tensor,
    weight: Tensor,
    bias: Tensor,
    v: Tensor | None = None,
    s: Tensor | None = None,
    *,
    eps: float,
    activation: str = IDENTITY,
    backend: str = AUTO,
) -> Tensor:
    """Returns o, [B, T, H N], in the dtype of y.

    y: [B, T, H, N], one of fp32, bf16, fp16, fp64.
    g: [B, T, H N] in the dtype of y, the gate before its activation.
    weight, bias: [H N], any float dtype.
    v, s: [B, T, H, N] in the dtype of y and [B, T, H] of any float dtype; both or neither.
    activation: "identity" or "silu".

    Gradients flow to every tensor. Raises BackendError when an argument does not fit or the
    backend asked for cannot serve the call.
    """
    sequences = {"y": y} if v is None else {"y": y, "v": v}
    like = check_sequences("head_norm_gate", sequences, "[B, T, H, N]")
    batch, time, heads, size = like.shape
    width = heads * size
    check_floats("head_norm_gate", "g", g, (batch, time, width), like)
    if g.dtype != like.dtype:
        raise BackendError(f"head_norm_gate: g has dtype {g.dtype}, expected {like.dtype} like y")
    weight = prepare("head_norm_gate", "weight", weight, (width,), like)
    bias = prepare("head_norm_gate", "bias", bias, (width,), like)
    if (v is None) != (s is None):
        given, missing = ("s", "v") if v is None else ("v", "s")
        raise BackendError(f"head_norm_gate: {given} is given without {missing}; give both")
    if s is not None:
        s = prepare("head_norm_gate", "s", s, (batch, time, heads), like)
    if activation not in (IDENTITY, SILU):
        raise BackendError(
            f"head_norm_gate: activation is {activation!r}, expected '{IDENTITY}' or '{SILU}'"
        )
    tensors = (y, g, weight, bias, v, s)
    call = describe_call("head_norm_gate", like, tensors, has_state=False, has_reset=False)
    out: Tensor = dispatch(BACKENDS, backend, call, (*tensors, eps, activation == SILU))
    return out
