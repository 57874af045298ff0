"""Seconds that context parallelism adds to a layer: exchanged states, border rows, a second pass.

The ranks of a sample exchange, once a layer and direction, what a piece does to the state (its
transition P and contribution Q), and hand on the last row of a token shift, twice a layer and
direction. Nothing of it is hidden here; computing the receptance behind it would be a gain.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rwkv_train.planning.link_traffic import (
    BETWEEN_MESSAGE,
    BETWEEN_START,
    BETWEEN_STEP,
    INSIDE_MESSAGE,
    INSIDE_START,
    INSIDE_STEP,
    Network,
)

_FP32 = 4
# Assumed: seconds of a small kernel, which folds what was exchanged.
_KERNEL = 5e-6
# Ranks from which on the trainer scans states in rounds, instead of gathering them.
_SCANNED_FROM = 16
# Operator calls in which a layer forms P and Q, and the local gradient of its state, as forward
# calls: of RWKV-7 two rows of a batch and one reversed; of RWKV-4 the last is a backward pass.
EXTRA_CALLS = {"4": 3, "5": 2, "6": 2, "7": 3}


class ContextShape(NamedTuple):
    """Sizes of what the ranks of a sample exchange.

    samples: of a pass.  width: channels of the time mix; head: of each head, 0 in RWKV-4.
    """

    version: str
    samples: int
    width: int
    head: int

    @property
    def state(self) -> int:
        """Bytes of a layer's state in fp32."""
        numbers = 3 if self.version == "4" else self.head
        return _FP32 * self.samples * self.width * numbers

    @property
    def message(self) -> int:
        """Bytes that a rank sends of a layer: Q and P, which RWKV-7 has as a matrix."""
        if self.version == "7":
            return 2 * self.state
        return self.state + (0 if self.version == "4" else _FP32 * self.samples * self.width)


class ContextLinks(NamedTuple):
    """Links between neighbouring ranks of a sample.

    bandwidth: bytes/s of a rank.  start, step: seconds of a collective; message: of one hop.
    """

    bandwidth: float
    start: float
    step: float
    message: float


def context_links(network: Network, ranks: int) -> ContextLinks:
    """Returns the links that `ranks` consecutive cards exchange over.

    Ranks of one node use its links; beyond, every card has its part of the node's adapters.
    """
    if ranks <= network.cards:
        return ContextLinks(network.link, INSIDE_START, INSIDE_STEP, INSIDE_MESSAGE)
    share = min(network.link, network.node / network.cards)
    return ContextLinks(share, BETWEEN_START, BETWEEN_STEP, BETWEEN_MESSAGE)


def exchange_seconds(shape: ContextShape, links: ContextLinks, ranks: int) -> dict[str, float]:
    """Returns the seconds of each form of the exchange of one layer in one direction.

    gather: an all-gather, folded by one kernel; chain: states from rank to rank; scan: rounds of
    doubling distance, two products each.
    """
    others, rounds = ranks - 1, math.ceil(math.log2(ranks))
    sent = shape.message / links.bandwidth
    gathered = links.start + others * (links.step + sent) + _KERNEL
    chained = others * (links.message + shape.state / links.bandwidth + _KERNEL)
    return {
        "gather": gathered,
        "chain": chained,
        "scan": rounds * (links.message + sent + 2 * _KERNEL),
    }


def context_seconds(shape: ContextShape, links: ContextLinks, ranks: int) -> float:
    """Returns what a layer waits for its neighbours in a forward and backward pass.

    A forward pass that is made again has kept what it was sent.
    """
    if ranks == 1:
        return 0.0
    hops = 2 * links.message
    exchange = exchange_seconds(shape, links, ranks)
    # The trainer folds gathered states of few ranks and scans those of many.
    taken = exchange["gather" if ranks < _SCANNED_FROM else "scan"]
    return 2 * (taken + hops)
