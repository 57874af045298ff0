"""Reads a version's PARAMETERS table: initial values and optimizer groups.

Every parameter must match exactly one row of the table.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rwkv_train.errors import ConfigError
from rwkv_train.models.adapters import is_adapter, learns
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.registry import version_module
from rwkv_train.models.table import (
    ADAPTER_LENGTHS,
    ADAPTER_MATRIX,
    InitContext,
    Rate,
    Row,
    seeded_generator,
)

# Learning-rate factors of the groups. RWKV-LM's stage 2 takes one factor for the special ones,
# to which the mixes then belong.
_FACTORS = {Rate.ONE: 1.0, Rate.MIX: 1.0, Rate.TWO: 2.0, Rate.THREE: 3.0}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning-rate factor and a weight decay.

    lr_factor multiplies the scheduled rate. names and parameters go together, in model order.
    hidden_matrices: whether these are the matrices between embedding and head, which alone an
    optimizer for matrices may train.
    """

    lr_factor: float
    weight_decay: float
    hidden_matrices: bool = False
    names: list[str] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def initialize(
    model: RWKV, *, seed: int, lr_init: float, only: Collection[str] | None = None
) -> None:
    """Writes the values of a fresh `rwkv-init.pth` into every parameter of `model`.

    A value depends on the seed and the parameter's name alone: not on the global random state,
    nor on which other parameters there are.
    lr_init: RWKV-4 draws its embedding uniformly from ±lr_init.
    only: names of the parameters to write; None: all.
    """
    rows = _rows_of(model)
    for name, parameter in model.named_parameters():
        if only is not None and name not in only:
            continue
        generator = seeded_generator(seed, name)
        place = InitContext(
            tuple(parameter.shape), _layer_of(name), model.config, lr_init, generator
        )
        # The generator is the CPU's, whatever torch's default device is at the moment.
        with torch.device("cpu"):
            value = rows[name].init(place)
        parameter.copy_(value.reshape(parameter.shape))


def parameter_groups(
    model: RWKV,
    *,
    weight_decay: float,
    layerwise_lr: bool = True,
    special_lr_factor: float | None = None,
    train_type: str = "all",
    matrices_apart: bool = False,
    fully: Collection[str] = (),
) -> list[ParameterGroup]:
    """Returns groups for the optimizer in RWKV-LM's order: 1x, 2x, 3x, decayed, without empty ones.

    weight_decay: 0 puts the decayed parameters into the 1x group.
    layerwise_lr: False makes every factor 1.
    special_lr_factor: RWKV-LM's stage 2 (5): the factor of a second group, the mixes, and of a
        third, all that otherwise has 2x or 3x.
    train_type: "states" trains only the initial states, "lora" the adapters and what `fully` says.
    fully: words of --lora_train.
    matrices_apart: puts the decayed matrices other than emb and head into a last group of their
        own, whatever weight_decay is.

    Parameters that require no gradient are skipped. Raises ConfigError when nothing is trained.
    """
    rows = _rows_of(model)
    groups: dict[tuple[int, float], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not learns(name, train_type, fully):
            continue
        key = _group_of(rows[name], weight_decay > 0, layerwise_lr, special_lr_factor)
        # A group of their own: Muon and AdamW cannot share one.
        if matrices_apart and rows[name].decayed and name not in _OUTER_MATRICES:
            key = (_MATRICES, 1.0)
        decay = weight_decay if key[0] >= _DECAYED else 0.0
        group = groups.setdefault(key, ParameterGroup(key[1], decay, key[0] == _MATRICES))
        group.names.append(name)
        group.parameters.append(parameter)
    if not groups:
        raise ConfigError(
            f"--train_type {train_type} leaves nothing to train: the model has no "
            f"{'adapters' if train_type == 'lora' else 'initial states'}"
        )
    return [groups[key] for key in sorted(groups)]


_DECAYED = 3
_MATRICES = 4
# Their rows and columns are tokens, not directions of a space: Muon's idea does not fit them.
_OUTER_MATRICES = ("emb.weight", "head.weight")


def _group_of(
    row: Row, decaying: bool, layerwise_lr: bool, special_lr_factor: float | None
) -> tuple[int, float]:
    """Returns the position in RWKV-LM's order of groups, and the learning-rate factor."""
    if row.decayed and decaying:
        return _DECAYED, 1.0
    if not layerwise_lr or row.rate is Rate.ONE:
        return 0, 1.0
    if special_lr_factor is not None:
        return (1 if row.rate is Rate.MIX else 2), float(special_lr_factor)
    position = {Rate.MIX: 0, Rate.TWO: 1, Rate.THREE: 2}[row.rate]
    return position, _FACTORS[row.rate]


def _rows_of(model: RWKV) -> dict[str, Row]:
    """Returns the row of every parameter, by name."""
    table = version_module(model.config.rwkv_version).PARAMETERS
    patterns = [(_compile(row.pattern), row) for row in table]
    rows = {}
    for name, _ in model.named_parameters():
        if is_adapter(name):
            rows[name] = ADAPTER_LENGTHS if name.endswith("magnitude") else ADAPTER_MATRIX
            continue
        matching = [row for pattern, row in patterns if pattern.fullmatch(name)]
        assert len(matching) == 1, (
            f"{name} matches {len(matching)} rows of the PARAMETERS table of RWKV-"
            f"{model.config.rwkv_version}, expected one"
        )
        rows[name] = matching[0]
    return rows


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", "[0-9]+"))


def _layer_of(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blocks.") else 0
