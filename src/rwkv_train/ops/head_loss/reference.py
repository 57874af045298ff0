"""Head and loss with all logits at once; the ground truth for `head_loss`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rwkv_train.ops.precision import compute_dtype

# The weight of the largest logit in its own gradient, as part of the token's loss.
L2WRAP = 1e-4


def head_loss_reference(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    total: float | None = None,
    extra_logits: Tensor | None = None,
) -> Tensor:
    """Returns the scalar of `rwkv_train.ops.head_loss.head_loss` with gradients by autograd.

    Shapes as there. L2Wrap is added as l - l.detach(): its value is 0, its gradient that of l.
    """
    logits = _logits(x, weight, extra_logits)
    losses = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )  # [B * T]
    # argmax and gather, not amax: on a tie amax shares its gradient, L2Wrap takes the first entry.
    largest = logits.gather(2, logits.argmax(2, keepdim=True)).flatten()
    wrap = 0.5 * L2WRAP * largest.square()
    losses = losses + (wrap - wrap.detach())
    counts = torch.ones_like(losses) if mask is None else mask.flatten().to(losses.dtype)
    return (losses * counts).sum() / (counts.sum() if total is None else total)


def head_token_losses_reference(
    x: Tensor, weight: Tensor, targets: Tensor, *, extra_logits: Tensor | None = None
) -> Tensor:
    """Returns the [B, T] losses of `rwkv_train.ops.head_loss.head_token_losses`."""
    logits = _logits(x, weight, extra_logits)
    return -logits.log_softmax(2).gather(2, targets.unsqueeze(2)).squeeze(2)


def _logits(x: Tensor, weight: Tensor, extra: Tensor | None) -> Tensor:
    logits = (x @ weight.T).to(compute_dtype(x.dtype))  # [B, T, V]
    return logits if extra is None else logits + extra
