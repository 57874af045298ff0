"""The share of weights and moments that this rank writes into a training state.

Under ZeRO it is the partition that the rank has; where every rank has all, an equal part of the
bytes. Together the shares are the whole, once, and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_train.checkpoint.state_parts import TensorRun
from rwkv_train.training.optim.host_copies import HostCopies
from rwkv_train.training.optim.optimizer_state import (
    link_moments,
    master_of,
    moments_by_parameter,
    own_moments,
    updates_made,
    zero3_run,
)


def capture_pieces(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    engine: Any | None,
    *,
    copies: HostCopies,
    rank: int,
    ranks: int,
    moments: bool = True,
) -> dict[str, Any]:
    """Returns CPU copies of what this rank writes, fp32.

    moments: those of the optimizer too. What does not learn is not among the copies. Those that
    the same `copies` made before are written over, unless they are in use.

    Returns {"pieces": [TensorRun], "optimizer_steps": int}.
    """
    found = _own(model, optimizer, engine, rank, ranks, moments)
    pieces = [
        TensorRun(path, shape, first, copies.copied(values, key=path))
        for path, shape, first, values in found
    ]
    return {"pieces": pieces, "optimizer_steps": updates_made(optimizer, engine)}


def prepare_copies(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    engine: Any | None,
    *,
    copies: HostCopies,
    rank: int,
    ranks: int,
) -> None:
    """Lets `copies` take the memory that `capture_pieces` needs, as far as there are moments."""
    found = _own(model, optimizer, engine, rank, ranks, moments=True)
    copies.prepare((path, values) for path, _, _, values in found)


def whole_pieces(weights: Mapping[str, Tensor]) -> list[TensorRun]:
    """Returns weights that one rank writes alone, without copying them."""
    return [
        TensorRun(("weights", name), tuple(value.shape), 0, value.detach().reshape(-1))
        for name, value in weights.items()
    ]


def _own(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    engine: Any | None,
    rank: int,
    ranks: int,
    moments: bool,
) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], int, Tensor]]:
    """Yields path and shape of every tensor of which a part is this rank's, and that part.

    The part: place of its first element in the flattened tensor, and its values, [n].
    """
    with_moments = moments and updates_made(optimizer, engine) > 0
    if engine is None:
        return _shared_out(_whole_tensors(model, optimizer, with_moments), rank, ranks)
    return _partitions(model, engine, with_moments)


def _whole_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: bool
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        yield ("weights", name), master_of(parameter, optimizer)
        if moments:
            for key, value in own_moments(parameter, optimizer):
                yield ("moments", key, name), value


def _shared_out(
    tensors: Iterator[tuple[tuple[str, ...], Tensor]], rank: int, ranks: int
) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], int, Tensor]]:
    """Yields the elements that are this rank's when the bytes of all are cut into equal parts."""
    laid_out, end = [], 0
    for path, tensor in tensors:
        # As they are copied: floats as fp32.
        width = 4 if tensor.is_floating_point() else tensor.element_size()
        laid_out.append((path, tensor.detach(), end, width))
        end += tensor.numel() * width
    first_byte, last_byte = (end * place // ranks for place in (rank, rank + 1))
    for path, tensor, begin, width in laid_out:
        # An element on the border is the rank's in whose part it begins.
        first, last = (
            min(max(-(-(byte - begin) // width), 0), tensor.numel())
            for byte in (first_byte, last_byte)
        )
        if first < last:
            yield path, tuple(tensor.shape), first, tensor.reshape(-1)[first:last]


def _partitions(
    model: nn.Module, engine: Any, moments: bool
) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], int, Tensor]]:
    """Yields what DeepSpeed's optimizer has on this rank."""
    if moments:
        link_moments(engine)
    keys = moments_by_parameter(engine)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        for key in (None, *(keys[id(parameter)] if moments else ())):
            path = ("weights", name) if key is None else ("moments", key, name)
            first, values = _own_run(parameter, key)
            if values.numel():
                yield path, shape, first, values


# A parameter is Any where DeepSpeed has hung attributes of its own on it.
def _own_run(parameter: Any, key: str | None) -> tuple[int, Tensor]:
    """Returns where this rank's share of a parameter begins, and the share's fp32 values."""
    if hasattr(parameter, "ds_id"):
        first, last, _ = zero3_run(parameter)
        values: Tensor = parameter._z3_optimizer.get_local_fp32_param(parameter, key)
        return first, values.detach()[: last - first]
    mapping = parameter._hp_mapping
    if mapping is None:
        return 0, torch.empty(0)
    return mapping.lp_fragment_address.start, mapping.get_hp_fragment(key).detach()
