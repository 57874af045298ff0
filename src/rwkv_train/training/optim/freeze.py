"""Freezes the part of the model that does not learn."""

from __future__ import annotations

from torch import nn

from rwkv_train.models.parameters import ParameterGroup


def freeze_all_but(model: nn.Module, groups: list[ParameterGroup]) -> None:
    """Freezes the parameters in no group: they need neither gradients nor optimizer memory."""
    trained = {id(p) for group in groups for p in group.parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def describe_trained(model: nn.Module) -> str:
    """Returns in one line how much of the model learns."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return f"{trained:,} of {total:,} parameters learn ({trained / total:.2%}); the rest is frozen"
