"""AdamW that clips and updates all parameters in one pass, with fp32 masters of 16-bit weights.

State per parameter as torch.optim.AdamW has it: step, exp_avg, exp_avg_sq, both in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rwkv_train.ops.adamw import AdamwOptions, AdamwTensors, adamw_update, gradient_norm


class FusedAdamW(torch.optim.AdamW):
    """A torch Optimizer whose step is `ops.adamw`.

    masters: the fp32 values of parameters that are 16-bit copies of them; the others are their own.
    options: as torch.optim.AdamW takes them, the betas and eps of all groups.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        masters: Mapping[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(groups, **options)
        self._masters = dict(masters or {})
        self._limit = 0.0
        self._norm: Tensor | None = None

    def master_of(self, parameter: Tensor) -> Tensor:
        """Returns the fp32 value of a parameter: its master, or the parameter itself."""
        return self._masters.get(parameter, parameter)

    def clip(self, limit: float) -> Tensor:
        """Returns the norm of all gradients, fp64; the next step clips them to `limit`, if not 0.

        The gradients stay as they are: the step multiplies them on its way.
        """
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = gradient_norm(gradients) if gradients else torch.zeros((), dtype=torch.float64)
        self._norm, self._limit = norm, limit
        return norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found, options = self._gathered()
        adamw_update(found, options)
        self._norm = None
        return loss

    def _gathered(self) -> tuple[AdamwTensors, AdamwOptions]:
        """Returns all that a step needs, for the parameters that have a gradient."""
        found = AdamwTensors([], [], [], [], [], [])
        rates: list[float] = []
        decays: list[float] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                master = self.master_of(parameter)
                state = self.state[parameter] or self._begin(parameter, master)
                moments = state["exp_avg"], state["exp_avg_sq"], state["step"]
                tensors = (master, parameter.grad, *moments, parameter)
                # Masters for all parameters or for none: then there is nothing else to write.
                for of_kind, tensor in zip(found[: 6 if self._masters else 5], tensors):
                    of_kind.append(tensor)  # type: ignore[attr-defined]
                rates.append(group["lr"])
                decays.append(group["weight_decay"])
        (beta1, beta2), eps = self.defaults["betas"], self.defaults["eps"]
        clips = self._norm is not None and self._limit > 0
        norm = self._norm if clips else None
        return found, AdamwOptions(rates, decays, beta1, beta2, eps, norm, self._limit)

    def _begin(self, parameter: Tensor, master: Tensor) -> dict[str, Tensor]:
        """Returns the state of a parameter before its first step."""
        self.state[parameter] = {
            # On the CPU, where its value is needed.
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
        }
        started: dict[str, Tensor] = self.state[parameter]
        return started
