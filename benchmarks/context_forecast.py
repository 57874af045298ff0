"""How long a step on ranks that share a sample should take, from parts that are measured alone.

    one process's time / n  +  layers x (passes for states + exchange)

The passes are those of `benchmarks.wkv_pieces`, on the tokens of a rank; the exchange is the model
of rwkv-plan, `planning.context_traffic`, with links as these processes have them: nothing counts as
hidden.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import distributed

from benchmarks.wkv_cases import Shape, make_inputs
from benchmarks.wkv_pieces import piece_calls
from benchmarks.wkv_timing import alternate
from rwkv_train.planning.context_traffic import ContextLinks, ContextShape, context_seconds
from rwkv_train.training.distributed.context_group import ContextGroup

CPU = torch.device("cpu")
# A message that takes far longer than its latency, in numbers of fp32.
LARGE = 2**20
CALLS = 9


class Added(NamedTuple):
    """Seconds a layer, forward and backward, that one process does not need."""

    passes: float
    exchange: float


def added_seconds(
    version: str, width: int, head_size: int, tokens: int, backend: str, group: ContextGroup
) -> Added:
    """Returns what a layer of these sizes takes more on every rank. Collective.

    tokens: of this rank.  head_size: not read for RWKV-4.
    """
    if group.size == 1:
        return Added(0.0, 0.0)
    heads, size = (width, 1) if version == "4" else (width // head_size, head_size)
    op = f"wkv{version}"
    inputs = make_inputs(op, Shape(1, tokens, heads, size), torch.float32, CPU)
    piece, gradient = piece_calls(op, backend, inputs)
    seconds = alternate({"piece": piece, "gradient": gradient}, 3, CPU)
    shape = ContextShape(version, 1, width, 0 if version == "4" else head_size)
    exchange = context_seconds(shape, measured_links(group), group.size)
    return Added(seconds["piece"] + seconds["gradient"], exchange)


def measured_links(group: ContextGroup) -> ContextLinks:
    """Returns the links of these ranks; a gather's steps count as its start. Collective."""
    small, large = torch.zeros(1), torch.zeros(LARGE)
    start = _median(lambda: group.gather(small).result())
    message = _median(lambda: group.pass_on(small, 1).result())
    travels = _median(lambda: group.gather(large).result()) - start
    others = group.size - 1
    return ContextLinks(others * large.nbytes / max(travels, 1e-9), start, 0.0, message)


def _median(exchange: Callable[[], object]) -> float:
    """Returns the seconds of a call that all ranks make together."""
    seconds = []
    for _ in range(CALLS):
        distributed.barrier()
        began = time.perf_counter()
        exchange()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
