"""Measures the gradients' norms by kind of parameter, where gradients lie whole on every rank."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.models.adapters import is_adapter
from rwkv_train.models.parameters import ParameterGroup
from rwkv_train.planning.parameter_table import is_planned, tensor_shapes

ADAPTER_KIND, STATE_KIND, OTHER_KIND = "adapters", "initial states", "others"
_STATES = ("time_state",)


class GradientKinds:
    """The parameters that learn, sorted by what tables call their kind.

    groups: those of the optimizer.
    """

    def __init__(self, groups: Sequence[ParameterGroup], model: ResolvedModel) -> None:
        kinds: dict[str, list[Tensor]] = {}
        known = _kinds(model)
        for group in groups:
            for name, parameter in zip(group.names, group.parameters):
                kinds.setdefault(_kind_of(name, known), []).append(parameter)
        self._kinds = kinds
        self._found: tuple[list[str], Tensor] | None = None

    @torch.no_grad()
    def measure(self) -> None:
        """Measures the norms as they are now, a pass over the gradients; waits for no card."""
        names, norms = [], []
        for name, parameters in self._kinds.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                names.append(name)
                norms.append(_norm(gradients))
        self._found = (names, torch.stack(norms)) if norms else None

    def forget(self) -> None:
        """Drops what was measured: the step was left out."""
        self._found = None

    def take(self) -> dict[str, float] | None:
        """Returns kind -> L2 norm as `measure` found them; None without one since the last call.

        Reads the device, which has them once anything launched later was read.
        """
        if self._found is None:
            return None
        (names, norms), self._found = self._found, None
        return dict(zip(names, norms.tolist()))


def _norm(gradients: list[Tensor]) -> Tensor:
    # A card adds in a tree, for which fp32 is plenty; a CPU adds long rows one after another.
    wide = torch.float64 if gradients[0].device.type == "cpu" else torch.float32
    norm: Tensor = torch.linalg.vector_norm(
        torch.stack(torch._foreach_norm(gradients, 2, dtype=wide))
    )
    return norm


def _kinds(model: ResolvedModel) -> dict[str, str]:
    """Returns key -> kind, `*` standing for the number of a block."""
    if not is_planned(model.rwkv_version):
        return {}
    return {tensor.key: tensor.kind.value for tensor in tensor_shapes(model)}


def _kind_of(name: str, known: dict[str, str]) -> str:
    if is_adapter(name):
        return ADAPTER_KIND
    if name.endswith(_STATES):
        return STATE_KIND
    in_any_block = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
    return known.get(name) or known.get(in_any_block, OTHER_KIND)
