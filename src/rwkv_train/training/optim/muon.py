"""Muon for the hidden matrices and AdamW for everything else, as one torch optimizer.

Muon (Jordan 2024) moves a matrix along its momentum with all singular values set to about one;
`torch.optim.Muon` computes that. It needs whole matrices: where ZeRO has cut them, `ZeroMatrices`
brings them together for the moment of the update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_train.training.optim.gather_matrices import ZeroMatrices

# What torch.optim.Muon reads from a group besides rate, decay, momentum and nesterov.
_SHAPE_OPTIONS = ("adjust_lr_fn", "ns_steps", "ns_coefficients", "eps")


class MuonWithAdamW(torch.optim.Optimizer):
    """A real torch Optimizer over both kinds of groups: the matrices' come last.

    matrix_groups, other_groups: parameter groups as torch takes them; muon, adamw: keyword
    arguments of torch.optim.Muon and torch.optim.AdamW.
    zero: set once DeepSpeed has cut the parameters into flat partitions; None: they are whole.
    State per parameter: momentum_buffer, or AdamW's step, exp_avg and exp_avg_sq.
    """

    def __init__(
        self,
        matrix_groups: list[dict[str, Any]],
        other_groups: list[dict[str, Any]],
        *,
        muon: dict[str, Any],
        adamw: dict[str, Any],
    ) -> None:
        self._muon = torch.optim.Muon(
            [{**group, "is_muon": True} for group in matrix_groups], **muon
        )
        self._adamw = torch.optim.AdamW(
            [{**group, "is_muon": False} for group in other_groups], **adamw
        )
        self.zero: ZeroMatrices | None = None
        # The groups' dictionaries are shared: a rate written here is the inner optimizers' rate.
        super().__init__(self._adamw.param_groups + self._muon.param_groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every group in `param_groups`; DeepSpeed passes one at a time."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["is_muon"] and self.zero is not None:
                self._step_in_parts(group, self.zero)
                continue
            inner = self._muon if group["is_muon"] else self._adamw
            # load_state_dict and DeepSpeed replace these, so they are handed over every time
            inner.param_groups, inner.state = [group], self.state
            # torch leaves its own step without annotations.
            inner.step()  # type: ignore[no-untyped-call]
        return loss

    def _step_in_parts(self, group: dict[str, Any], zero: ZeroMatrices) -> None:
        """Does torch.optim.Muon's update of flat partitions. Collective.

        Momentum and decay act entry by entry, and so where the entries lie; only the direction
        needs whole matrices.
        """
        for flat in group["params"]:
            if flat.grad is None:
                continue
            gradient = flat.grad.to(flat.dtype)
            momentum = self.state[flat].setdefault("momentum_buffer", torch.zeros_like(flat))
            # In torch's order of operations, so that every entry gets the bits of one process.
            momentum.lerp_(gradient, 1 - group["momentum"])
            update = momentum
            if group["nesterov"]:
                update = gradient.lerp(momentum, group["momentum"])
            flat.mul_(1 - group["lr"] * group["weight_decay"])
            # bf16, as torch's iteration begins with it: half the bytes to gather, and no bit lost.
            for shard in zero.gather(flat, update.bfloat16()):
                direction = _direction(shard.matrix, group).flatten()[shard.within_matrix]
                flat[shard.within_flat].add_(direction, alpha=-group["lr"])


def _direction(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """Returns what torch.optim.Muon subtracts from a weight for this momentum, at rate 1.

    [m, n], fp32.
    """
    # A step from zero with neither momentum nor decay, so that torch's own iteration is computed.
    weight = nn.Parameter(torch.zeros(matrix.shape, device=matrix.device))
    weight.grad = matrix.float()
    muon = torch.optim.Muon(
        [weight],
        lr=1.0,
        weight_decay=0.0,
        momentum=0.0,
        nesterov=False,
        **{key: group[key] for key in _SHAPE_OPTIONS},
    )
    # torch leaves its own step without annotations.
    muon.step()  # type: ignore[no-untyped-call]
    return -weight.detach()
