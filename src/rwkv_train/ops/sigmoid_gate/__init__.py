"""A sequence gated by another: o = σ(r) y, RWKV-4's time mix and the channel mixes of RWKV-4 to 6.

    gr = go y σ'(r)     gy = go σ(r)     with σ' from exp(-|r|): 1 - σ(r) would lose its digits

| backend     | serves                                            | memory kept for backward     |
|-------------|---------------------------------------------------|------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | r, y                         |
| `reference` | any device, torch operators one by one            | σ(r) and y in fp32 (fp64)    |

On a GPU without nvcc, and for fp64 there, `reference` serves, and the log says so once.

Source: RWKV papers, "receptance".
"""

from __future__ import annotations

from torch import Tensor

from rwkv_train.ops.arguments import check_sequences, describe_call
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch

BACKENDS = backends_of("sigmoid_gate", "native", "reference")


def sigmoid_gate(r: Tensor, y: Tensor, *, backend: str = AUTO) -> Tensor:
    """Returns σ(r) y, [B, T, D] in the dtype of r; computed in fp32 (fp64) and rounded once.

    r, y: [B, T, D], both in one of fp32, bf16, fp16, fp64.

    Raises BackendError when r and y do not fit or the backend asked for cannot serve the call.
    """
    like = check_sequences("sigmoid_gate", {"r": r, "y": y}, "[B, T, D]")
    call = describe_call("sigmoid_gate", like, (r, y), has_state=False, has_reset=False)
    gated: Tensor = dispatch(BACKENDS, backend, call, (r, y))
    return gated
