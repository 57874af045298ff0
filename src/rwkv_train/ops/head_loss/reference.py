"""Head and loss by torch's own operators.

`head_loss_reference`, with all logits at once and gradients by autograd, is the ground truth for
`head_loss`. `run` does with a slice of logits what the native kernels do, where there
are none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from rwkv_train.ops.backends.dispatch import serves_every_call
from rwkv_train.ops.precision import compute_dtype

# The weight of the largest logit in its own gradient, as part of the token's loss.
L2WRAP = 1e-4
# Bytes of 16-bit logits that exist in fp32 at a time.
WIDENED_BYTES = 64 * 2**20

refuses = serves_every_call


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


def run(step: str, *arguments: object) -> object:
    """Returns the result of a step: "rows" for every slice, and then "mean"."""
    return _STEPS[step](*arguments)


def _rows(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    extra: Tensor | None,
    extra_gradient: Tensor | None,
    losses: Tensor,
    gradient_dtype: torch.dtype | None,
) -> Tensor:
    """Returns the gradient of a slice's summed loss, [n, V]; its logits' memory is used up.

    logits: [n, V].  targets: [n].  mask: [n], the weights of the tokens, or None for ones.
    extra: [n, V], added to the logits, or None.  extra_gradient: [n, V], receives its gradient.
    losses: [n] in the compute dtype, receives every token's loss, without its weight.
    gradient_dtype: that of the logits or, of fp32 ones, a 16-bit one; None: losses only.
    """
    if logits.dtype == losses.dtype:
        _to_gradient(logits, targets, mask, extra, extra_gradient, losses)
        return logits if gradient_dtype is None else logits.to(gradient_dtype)
    count = max(1, WIDENED_BYTES // (losses.itemsize * logits.shape[1]))
    for start in range(0, logits.shape[0], count):
        part = slice(start, start + count)
        weights, more, room = (
            None if x is None else x[part] for x in (mask, extra, extra_gradient)
        )
        wide = logits[part].to(losses.dtype)
        _to_gradient(wide, targets[part], weights, more, room, losses[part])
        logits[part] = wide
    return logits


def _mean(losses: Tensor, mask: Tensor | None, total: float | None) -> tuple[Tensor, Tensor]:
    """Returns the weighted sum of losses [n] divided by the total, and the total, both scalars.

    total: None takes the sum of the weights, or 1 where that is 0: the loss is then 0, not 0 / 0.
    """
    loss = losses.sum() if mask is None else losses @ mask
    if total is None and mask is not None:
        weight = mask.sum()
        divisor = torch.where(weight > 0, weight, 1)
    else:
        size = float(losses.shape[0]) if total is None else total
        # filled, not copied: a copy to a GPU waits for it
        divisor = torch.full_like(loss, size)
    return loss / divisor, divisor


_STEPS: dict[str, Callable[..., object]] = {"rows": _rows, "mean": _mean}


def _to_gradient(
    logits: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    extra: Tensor | None,
    extra_gradient: Tensor | None,
    losses: Tensor,
) -> None:
    """Fills in `losses` and `extra_gradient`, and turns `logits` in place into their gradient."""
    if extra is not None:
        logits += extra
    targets = targets.unsqueeze(1)
    largest, position = logits.max(1, keepdim=True)
    at_target = logits.gather(1, targets)
    # In place throughout: a second slice of logits would double the peak of memory.
    logits -= largest
    logits.exp_()
    total = logits.sum(1, keepdim=True)
    found = total.log() + largest - at_target  # [n, 1]
    losses.copy_(found.squeeze(1))
    logits /= total
    logits.scatter_add_(1, targets, found.new_full((), -1).expand_as(found))
    logits.scatter_add_(1, position, largest * L2WRAP)
    if mask is not None:
        logits *= mask.unsqueeze(1)
    if extra_gradient is not None:
        extra_gradient.copy_(logits)


def _logits(x: Tensor, weight: Tensor, extra: Tensor | None) -> Tensor:
    logits = (x @ weight.T).to(compute_dtype(x.dtype))  # [B, T, V]
    return logits if extra is None else logits + extra
