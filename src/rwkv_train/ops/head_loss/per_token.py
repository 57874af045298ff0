"""Each token's own cross entropy, a slice of tokens at a time, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_train.ops.precision import compute_dtype


def sliced_token_losses(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    extra: Tensor | None,
    rows: int,
    matmul_dtype: torch.dtype,
) -> Tensor:
    """[n] losses of x [n, C], weight [V, C], targets [n], extra [n, V] | None.

    rows: tokens per slice; at most one slice of logits exists at a time.
    """
    dtype = compute_dtype(matmul_dtype)
    operand = weight.to(matmul_dtype)
    losses = x.new_empty(x.shape[0], dtype=dtype)
    for start in range(0, x.shape[0], rows):
        part = slice(start, start + rows)
        logits = (x[part].to(matmul_dtype) @ operand.T).to(dtype)  # [rows, V]
        if extra is not None:
            logits += extra[part]
        largest = logits.amax(1)
        at_target = logits.gather(1, targets[part].unsqueeze(1)).squeeze(1)
        # in place: logsumexp would take a second slice of memory
        total = logits.sub_(largest.unsqueeze(1)).exp_().sum(1)
        losses[part] = total.log() + largest - at_target
    return losses
