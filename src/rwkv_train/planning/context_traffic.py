"""Seconds that context parallelism adds to a layer: exchanged states, border rows, a second pass.

The ranks of a sample exchange, once a layer and direction, what a piece does to the state (its
transition P and contribution Q), and hand on the last row of a token shift, twice a layer and
direction. The states travel while the receptance, or the gradients of the gate, are computed; here
nothing counts as hidden, so that a step takes this at the most.
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
        """Bytes of a layer's state in fp32, and of its gradient, which a rank sends backwards."""
        numbers = 3 if self.version == "4" else self.head
        return _FP32 * self.samples * self.width * numbers

    @property
    def message(self) -> int:
        """Bytes that a rank sends forwards: Q and P, of RWKV-7 a matrix, of RWKV-4 a length."""
        more = {"4": _FP32 * self.samples, "7": self.state}
        return self.state + more.get(self.version, _FP32 * self.samples * self.width)


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
    """Returns the seconds of each form of the exchange of one layer's forward pass.

    gather: an all-gather, folded by one kernel; chain: states from rank to rank; scan: rounds of
    doubling distance, two products each.
    """
    others, rounds = ranks - 1, math.ceil(math.log2(ranks))
    chained = others * (links.message + shape.state / links.bandwidth + _KERNEL)
    sent = shape.message / links.bandwidth
    return {
        "gather": _gather_seconds(shape.message, links, ranks),
        "chain": chained,
        "scan": rounds * (links.message + sent + 2 * _KERNEL),
    }


def _gather_seconds(sent: int, links: ContextLinks, ranks: int) -> float:
    return links.start + (ranks - 1) * (links.step + sent / links.bandwidth) + _KERNEL


def context_seconds(shape: ContextShape, links: ContextLinks, ranks: int) -> float:
    """Returns what a layer waits for its neighbours in a forward and backward pass.

    A forward pass that is made again has kept what it was sent.
    """
    if ranks == 1:
        return 0.0
    exchange = exchange_seconds(shape, links, ranks)
    if ranks < _SCANNED_FROM:
        # Gathered, and backwards without the transitions, which all ranks have kept.
        states = exchange["gather"] + _gather_seconds(shape.state, links, ranks)
    else:
        states = 2 * exchange["scan"]
    return states + 4 * links.message
