"""What learns, and what of it is written for the world."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from src.models.parameters import ParameterGroup


def freeze_all_but(model: nn.Module, groups: list[ParameterGroup]) -> None:
    """Parameters in no group need neither gradients nor optimizer memory."""
    trained = {id(p) for group in groups for p in group.parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def published_weights(
    weights: dict[str, Tensor], train_type: Literal["all", "states"]
) -> dict[str, Tensor]:
    """What a numbered checkpoint holds: everything, or in state tuning the states alone.

    The `rwkv` package and RWKV-LM expect such a file; the training state keeps the base model.
    """
    if train_type == "all":
        return weights
    return {name: value for name, value in weights.items() if "time_sta" in name}
