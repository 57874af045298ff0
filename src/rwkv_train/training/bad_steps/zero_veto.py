"""The step veto inside DeepSpeed's ZeRO optimizers, and the gradient norm it decides by."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ZeroVeto:
    """Lets `decide` have its say inside DeepSpeed's ZeRO optimizers (stages 1, 2 and 3).

    They have a way of their own to skip a step, for gradients that overflow, which frees all their
    buffers and touches nothing else: a norm that is not finite. That is what a step that is
    not allowed gets.

    decide: receives the norm of the gradients and the factor that they carry; returns whether the
    optimizer may step, and the norm as a number.
    """

    def __init__(self, zero: Any, decide: Callable[[Tensor, float], tuple[bool, float]]) -> None:
        self._zero = zero
        self._decide = decide
        self._vetoed = False
        # Stages 1 and 2 in bf16 look at the norm only when asked to.
        self._checks = getattr(zero, "check_grad_overflow", None)
        self._update_scale = zero._update_scale
        zero._update_scale = self._update_scale_unless_vetoed
        # The stages measure at different places, and only here is the norm global and the step
        # still to come.
        if hasattr(zero, "scaled_global_norm"):
            self._measure = zero.scaled_global_norm
            zero.scaled_global_norm = self._norm_of_stages_1_and_2
        else:
            self._measure = zero._get_norm_groups
            zero._get_norm_groups = self._norms_of_stage_3

    @property
    def loss_scale(self) -> float:
        """The factor of the gradients; 1 in bf16 and fp32."""
        return float(self._zero.loss_scale)

    def release(self) -> None:
        """Makes ready for the next step."""
        self._vetoed = False
        if self._checks is not None:
            self._zero.check_grad_overflow = self._checks

    def _norm_of_stages_1_and_2(self, *arguments: Any, **options: Any) -> Tensor:
        if self._zero.cpu_offload:
            norm: Tensor = self._measure(*arguments, **options)
        else:
            # In fp32 from here on, as DeepSpeed has it.
            norm = global_norm(self._zero, len(self._zero.bit16_groups), torch.float32)
        return self._vetoed_norm(norm)

    def _norms_of_stage_3(self) -> list[Tensor]:
        if self._zero.offload_optimizer:
            from deepspeed.runtime.utils import combine_grad_norm_groups

            norm = combine_grad_norm_groups(self._measure())
        else:
            norm = global_norm(self._zero, len(self._zero.fp16_groups))
        return [self._vetoed_norm(norm)]

    def _vetoed_norm(self, norm: Tensor) -> Tensor:
        """Returns the norm for clipping, or infinity to skip the step. Collective."""
        allowed, value = self._decide(norm, self.loss_scale)
        self._vetoed = not allowed
        if self._vetoed and self._checks is not None:
            self._zero.check_grad_overflow = True
        # On the CPU: DeepSpeed looks at it several times, and each look would wait for a GPU.
        return torch.tensor(value if allowed else math.inf, dtype=norm.dtype)

    def _update_scale_unless_vetoed(self, has_overflow: bool = False) -> None:
        scaler = self._zero.loss_scaler
        lowest = getattr(scaler, "min_scale", None)
        # A spike says nothing about the scale; at the lowest one DeepSpeed would end the process.
        if has_overflow and (self._vetoed or (lowest and scaler.cur_scale <= lowest)):
            return
        self._update_scale(has_overflow)


def global_norm(zero: Any, groups: int, dtype: torch.dtype | None = None) -> Tensor:
    """Returns the L2 norm of the gradients of all ranks, on their device. Collective.

    zero: DeepSpeed's optimizer of `groups` parameter groups, without offload.
    dtype: of the sums over ranks and groups; None: that of the sums within a rank.

    DeepSpeed's own converts every gradient to fp64 and launches several kernels for each of them.
    """
    parts = [
        # what fills up a partition is no gradient
        [g for g in zero.averaged_gradients[i] if not getattr(g, "_zero_padding", False)]
        for i in range(groups)
    ]
    flat = [gradient.detach() for part in parts for gradient in part]
    device = zero.device if not flat else flat[0].device
    # A GPU adds in a tree, for which fp32 is plenty; a CPU adds long rows one after another.
    wide = torch.float64 if device.type == "cpu" else torch.float32
    norms = torch._foreach_norm(flat, 2, dtype=wide) if flat else []
    squares = torch.stack(norms).square() if flat else torch.zeros(0, dtype=wide, device=device)
    sums = torch.stack([part.sum() for part in squares.split([len(part) for part in parts])])
    sums = sums.to(dtype or wide)
    torch.distributed.all_reduce(sums, group=zero.dp_process_group)
    return torch.linalg.vector_norm(sums.sqrt())
