"""Head and loss a slice of tokens at a time, gradients included."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rwkv_train.ops.backends.dispatch import without_autocast
from rwkv_train.ops.head_loss.reference import L2WRAP
from rwkv_train.ops.precision import compute_dtype


class Plan(NamedTuple):
    """What is computed and how."""

    rows: int
    """tokens per slice"""
    matmul_dtype: torch.dtype
    """the dtype of the operands of the matrix products"""
    wants: tuple[bool, bool, bool]
    """whether gradients of x, weight and extra logits are needed"""
    total: float | None
    """what the sum over tokens is divided by; None: the sum of the mask"""
    recomputed: bool = False
    """the gradients are left to a second call, and only their shapes are saved"""


class SlicedHeadLoss(torch.autograd.Function):
    """(x [n, C], weight [V, C], targets [n], mask [n] | None, extra [n, V] | None, plan) -> loss.

    The gradients are kept without the division by the total, which follows together
    with the incoming gradient: fp16 would lose them below 6e-8 before a loss scale could help.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        mask: Tensor | None,
        extra: Tensor | None,
        plan: Plan,
    ) -> Tensor:
        dtype = compute_dtype(plan.matmul_dtype)
        counts = None if mask is None else mask.to(dtype)
        if counts is None or plan.total is not None:
            size = float(x.shape[0]) if plan.total is None else plan.total
            total = torch.tensor(size, dtype=dtype, device=x.device)
        else:
            # With nothing to learn from, the loss is 0 and not 0 / 0.
            total = counts.sum()
            total = torch.where(total > 0, total, 1)
        now = any(plan.wants) and not plan.recomputed
        grads = _empty_gradients(x, weight, extra, plan)
        operand = weight.to(plan.matmul_dtype)
        loss = total.new_zeros(())
        for start in range(0, x.shape[0], plan.rows):
            part = slice(start, start + plan.rows)
            inputs = x[part].to(plan.matmul_dtype)
            logits = (inputs @ operand.T).to(dtype)  # [rows, V]
            if extra is not None:
                logits += extra[part]
            count = None if counts is None else counts[part]
            loss += _to_gradient(logits, targets[part], count, now)
            if now:
                _add_gradients(grads, part, logits, inputs, operand, plan)
        ctx.save_for_backward(total, *grads)
        ctx.dtypes = (x.dtype, weight.dtype, None if extra is None else extra.dtype)
        return loss / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        total, *grads = ctx.saved_tensors
        with without_autocast(total.device):
            scale = grad_loss / total
            grad_x, grad_weight, grad_extra = (
                None if grad is None else (grad * scale).to(dtype)
                for grad, dtype in zip(grads, ctx.dtypes)
            )
        return grad_x, grad_weight, None, None, grad_extra, None


def _empty_gradients(
    x: Tensor, weight: Tensor, extra: Tensor | None, plan: Plan
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    wants_x, wants_weight, wants_extra = plan.wants
    dtype = compute_dtype(plan.matmul_dtype)
    empty, zeros = torch.empty_like, torch.zeros_like
    if plan.recomputed:
        empty = zeros = _placeholder
    return (
        empty(x, dtype=plan.matmul_dtype) if wants_x else None,
        # fp32 whatever the weight's dtype, since the slices are summed in it
        zeros(weight, dtype=dtype) if wants_weight else None,
        empty(extra, dtype=extra.dtype) if wants_extra and extra is not None else None,
    )


def _placeholder(like: Tensor, dtype: torch.dtype) -> Tensor:
    """NaN in the shape of `like`, in the memory of one number.

    Checkpointing compares what both calls save by shape and dtype.
    """
    return like.new_full((), torch.nan, dtype=dtype).expand_as(like)


def _to_gradient(
    logits: Tensor, targets: Tensor, counts: Tensor | None, wants_gradient: bool
) -> Tensor:
    """The summed loss of a slice; turns `logits` in place into the gradient of that sum.

    counts: [rows], the mask, or None for ones.
    """
    targets = targets.unsqueeze(1)
    largest, position = logits.max(1, keepdim=True)
    at_target = logits.gather(1, targets)
    logits -= largest
    logits.exp_()
    total = logits.sum(1, keepdim=True)
    losses = total.log() + largest - at_target  # [rows, 1]
    if wants_gradient:
        logits /= total
        logits.scatter_add_(1, targets, losses.new_full((), -1).expand_as(losses))
        logits.scatter_add_(1, position, largest * L2WRAP)
        if counts is not None:
            logits *= counts.unsqueeze(1)
    return losses.sum() if counts is None else losses.squeeze(1) @ counts


def _add_gradients(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    part: slice,
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    plan: Plan,
) -> None:
    grad_x, grad_weight, grad_extra = grads
    if grad_extra is not None:
        grad_extra[part] = gradient
    gradient = gradient.to(plan.matmul_dtype)
    if grad_x is not None:
        torch.mm(gradient, weight, out=grad_x[part])
    if grad_weight is None:
        return
    if grad_weight.dtype == plan.matmul_dtype:
        grad_weight.addmm_(gradient.T, inputs)
    else:
        grad_weight += gradient.T @ inputs
