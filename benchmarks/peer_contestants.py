"""Those whose steps `benchmarks.peers` times: a name, a step, the FLOPs of its products."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.peer_adapters import Peer
from rwkv_train.training.whole_step import (
    TimedShape,
    dtype_named,
    initialized_model,
    own_loss,
    own_optimizer,
    plain_optimizer,
    product_flops,
    random_batch,
    training_step,
)


class Contestant(NamedTuple):
    """A step to be timed, and the FLOPs of its products with weights."""

    name: str
    step: Callable[[], object]
    flops: float
    parameters: int


def peer_contestant(
    peer: Peer, shape: TimedShape, device: torch.device, options: argparse.Namespace
) -> Contestant:
    """Returns a peer with torch's AdamW."""
    whole = peer.dtype or (torch.bfloat16 if options.weights == "bf16" else None)
    if whole is not None:
        peer.model.to(whole)
    step = training_step(
        peer.loss,
        plain_optimizer(peer.model),
        random_batch(shape, device),
        None if whole is not None else _autocast(options),
    )
    return _contestant(peer.name, peer.model, step, shape, peer.lookups)


def own_contestant(
    version: str, shape: TimedShape, device: torch.device, options: argparse.Namespace
) -> Contestant:
    """Returns our model of a version as it is trained."""
    model = initialized_model(version, shape, device)
    masters = options.weights == "bf16"
    optimizer = own_optimizer(model, masters=masters)
    autocast = None if masters else _autocast(options)
    step = training_step(own_loss(model), optimizer, random_batch(shape, device), autocast)
    return _contestant(f"RWKV-{version}", model, step, shape, ("emb.weight",))


def as_torch_multiplies(contestant: Contestant) -> Contestant:
    """Returns a contestant with the fp32 products that torch takes when nobody has chosen."""

    def step() -> None:
        chosen = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        contestant.step()
        torch.set_float32_matmul_precision(chosen)

    return contestant._replace(name=f"{contestant.name}, torch's", step=step)


def _contestant(
    name: str,
    model: nn.Module,
    step: Callable[[], object],
    shape: TimedShape,
    lookups: tuple[str, ...],
) -> Contestant:
    count = sum(p.numel() for p in model.parameters())
    return Contestant(name, step, product_flops(model, shape, lookups), count)


def _autocast(options: argparse.Namespace) -> torch.dtype | None:
    dtype = dtype_named(options.precision)
    return None if dtype == torch.float32 else dtype
