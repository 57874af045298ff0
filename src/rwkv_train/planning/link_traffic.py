"""Seconds of what travels between cards: rings and trees over the links of nodes.

A ring goes through every card once and from node to node as often as there are nodes. NCCL makes as
many rings as the links and adapters carry, so that together they fill them: of S bytes every card,
and every node, sends S (n - 1) / n, at the speed of a card's link inside and of all the node's
adapters together outside. The slower of the two is the bandwidth. Each step of a ring takes its
latency; an all-reduce of little takes a tree between the nodes instead.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# Assumed: seconds before the first byte of a collective, and of each further step of it, inside a
# node and between nodes; of one message to a neighbour.
INSIDE_START, INSIDE_STEP, INSIDE_MESSAGE = 12e-6, 3e-6, 12e-6
BETWEEN_START, BETWEEN_STEP, BETWEEN_MESSAGE = 20e-6, 6e-6, 20e-6
# Assumed: bytes/s of a node's adapters, for each of its cards, where none are named: 400 Gbit/s.
ADAPTER_BANDWIDTH = 50e9


class Network(NamedTuple):
    """The links of a run's cards.

    link: bytes/s of a card to the others of its node, in one direction; node: of all the adapters
    of a node together.  cards: of a node.
    """

    link: float
    node: float
    cards: int
    nodes: int

    @property
    def ranks(self) -> int:
        """All cards."""
        return self.cards * self.nodes

    @property
    def bandwidth(self) -> float:
        """Bytes/s at which a ring through all cards carries what each card sends."""
        if self.nodes == 1:
            return self.link
        return self.node if self.cards == 1 else min(self.link, self.node)

    @property
    def ring_latency(self) -> float:
        """Seconds of a ring of empty messages."""
        if self.nodes == 1:
            return INSIDE_START + (self.ranks - 1) * INSIDE_STEP
        inside = self.ranks - self.nodes
        return BETWEEN_START + (self.nodes - 1) * BETWEEN_STEP + inside * INSIDE_STEP

    @property
    def tree_latency(self) -> float:
        """Seconds of a tree of empty messages, up and down, with a chain inside each node."""
        start = INSIDE_START if self.nodes == 1 else BETWEEN_START
        between = math.ceil(math.log2(self.nodes)) * BETWEEN_STEP
        return start + 2 * (between + (self.cards - 1) * INSIDE_STEP)

    def gather(self, size: float, calls: float = 1) -> float:
        """Returns the seconds of all-gathers, or reduce-scatters, of `size` bytes in all.

        size: of the gathered whole.  calls: into which it is divided.  Both are rings in NCCL.
        """
        if self.ranks == 1:
            return 0.0
        return self._moved(size) + calls * self.ring_latency

    def all_reduce(self, size: float, calls: float = 1) -> float:
        """Returns the seconds of all-reduces of `size` bytes in all: each byte goes round twice."""
        if self.ranks == 1:
            return 0.0
        return 2 * self._moved(size) + calls * min(2 * self.ring_latency, self.tree_latency)

    def _moved(self, size: float) -> float:
        return size * (self.ranks - 1) / self.ranks / self.bandwidth
