"""Embedding with the layer norm behind it: a normalised row of the table for every token.

    y_t = LN(E[ids_t]) = (E - mean) / sqrt(variance + eps) * weight + bias        over channels

The norm of a token depends on its row alone and is linear in its gradient, so that the gradients of
all places where a token stands are added first, in fp32, and go back through the norm once. Rows of
tokens that are not there have a gradient of zero.

| backend     | serves                                            | memory kept for backward       |
|-------------|---------------------------------------------------|--------------------------------|
| `native`    | C++ on the CPU, CUDA on the GPU; needs a compiler | ids                            |
| `reference` | any device, torch operators one by one            | ids, rows before and after the |
|             |                                                   | norm, their statistics         |

Source: RWKV-LM, ln0 of the first block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.errors import BackendError
from rwkv_train.ops.arguments import check_sequences, describe_call, prepare
from rwkv_train.ops.backends.dispatch import AUTO, backends_of, dispatch

BACKENDS = backends_of("embedding_norm", "native", "reference")


def embedding_norm(
    ids: Tensor,
    table: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    backend: str = AUTO,
) -> Tensor:
    """Returns the normalised rows [B, T, C] in the table's dtype, computed in fp32 (fp64).

    ids: [B, T] int64, each in 0 .. V - 1; others are refused on a CPU and give NaN on a GPU.
    table: [V, C], one of fp32, bf16, fp16, fp64.  weight, bias: [C], any float dtype.

    Gradients flow to table, weight and bias; sums over tokens are fp32 (fp64) and rounded once.
    Raises BackendError when an argument does not fit or the backend asked for cannot serve.
    """
    check_sequences("embedding_norm", {"table": table}, "[V, C]")
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 2:
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise BackendError(f"embedding_norm: ids are {got}, expected int64 token ids [B, T]")
    if ids.numel() == 0 or ids.device != table.device:
        raise BackendError(
            f"embedding_norm: ids are {list(ids.shape)} on {ids.device}, expected at least one on "
            f"{table.device} like table"
        )
    _check_range(ids, table.shape[0])
    width = (table.shape[1],)
    weight = prepare("embedding_norm", "weight", weight, width, table)
    bias = prepare("embedding_norm", "bias", bias, width, table)
    like = table.new_empty(()).expand(*ids.shape, *width)
    call = describe_call(
        "embedding_norm", like, (table, weight, bias), has_state=False, has_reset=False
    )
    result: Tensor = dispatch(BACKENDS, backend, call, (ids, table, weight, bias, eps))
    return result


def _check_range(ids: Tensor, tokens: int) -> None:
    """Raises BackendError when an id has no row; on a CPU, since a GPU would be waited for."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    least, largest = ids.aminmax()
    if least < 0 or largest >= tokens:
        wrong = int(least if least < 0 else largest)
        raise BackendError(
            f"embedding_norm: ids hold {wrong}, expected 0 .. {tokens - 1}, the rows of table"
        )
