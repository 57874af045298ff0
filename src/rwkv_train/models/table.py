"""Rows of a version's PARAMETERS table: initial value, learning-rate group, weight decay.

Notation of the initial values: l layer, L layers, D width (n_embd), j channel of the parameter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from rwkv_train.config.resolved import ResolvedModel


@dataclass(frozen=True)
class InitContext:
    """The place of a parameter in the model: all that its initial value may depend on."""

    shape: tuple[int, ...]
    layer: int
    config: ResolvedModel
    lr_init: float
    generator: torch.Generator

    @property
    def depth(self) -> float:
        """l / (L - 1): 0 in the first layer, 1 in the last; 0 in a single one."""
        return self.layer / (self.config.n_layer - 1) if self.config.n_layer > 1 else 0.0

    @property
    def remaining(self) -> float:
        """1 - l / L: 1 in the first layer, almost 0 in the last."""
        return 1.0 - self.layer / self.config.n_layer

    @property
    def channels(self) -> Tensor:
        """j = 0, 1, 2 … over all entries of the parameter, fp64."""
        return torch.arange(math.prod(self.shape), dtype=torch.float64)

    @property
    def ramp(self) -> Tensor:
        """j / D, in [0, 1)."""
        return self.channels / self.config.n_embd

    @property
    def full_ramp(self) -> Tensor:
        """j / (n - 1), from 0 to 1, for a parameter of n entries."""
        return self.channels / (math.prod(self.shape) - 1)

    @property
    def zigzag(self) -> Tensor:
        """0, 1, -1, 0, 1, -1 … over the channels."""
        return (self.channels + 1) % 3 - 1


# Returns values of any float dtype, as many as the parameter has entries.
Init = Callable[[InitContext], Tensor]


class Rate(Enum):
    """Learning-rate group of a parameter; the factors are in `parameters.py`."""

    ONE = "1x"
    MIX = "1x, at RWKV-LM's stage 2 in the second group"
    TWO = "2x"
    THREE = "3x"


@dataclass(frozen=True)
class Row:
    """One line of a PARAMETERS table.

    pattern: checkpoint key, `*` standing for the block number.
    decayed: whether weight decay applies when it is on.
    """

    pattern: str
    init: Init
    rate: Rate = Rate.ONE
    decayed: bool = False


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """Returns a generator of the CPU for the parameter `name` alone."""
    # Not hash(), which Python salts anew in every process.
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def constant(value: float) -> Init:
    """Returns the initial value whose entries all are `value`."""
    return lambda place: torch.full(place.shape, value)


def uniform(limit: float) -> Init:
    """Returns the initial value that is uniform between -limit and limit."""
    return lambda place: torch.empty(place.shape).uniform_(-limit, limit, generator=place.generator)


def orthogonal(gain: float, *, grows: bool = False) -> Init:
    """Returns gain times a matrix m x n with orthonormal columns (m >= n) or rows (m < n).

    grows: for m > n the gain is multiplied by sqrt(m / n).
    """

    def init(place: InitContext) -> Tensor:
        m, n = place.shape
        gaussian = torch.empty(max(m, n), min(m, n)).normal_(generator=place.generator)
        q, r = torch.linalg.qr(gaussian)
        # Without the signs of R's diagonal Q would not be uniformly distributed.
        q *= r.diagonal().sign()
        q *= gain * (math.sqrt(m / n) if grows and m > n else 1.0)
        matrix: Tensor = q if m >= n else q.T
        return matrix

    return init


zeros = constant(0.0)
ones = constant(1.0)


def rising(exponent: float) -> Init:
    """Returns ramp^(exponent remaining): from 0 in channel 0 towards 1, the steeper the deeper."""
    return lambda place: place.ramp ** (exponent * place.remaining)


def falling(exponent: float) -> Init:
    """Returns 1 - ramp^(exponent remaining): from 1 in channel 0 towards 0."""
    return lambda place: 1 - rising(exponent)(place)


def norm_by_depth(place: InitContext) -> Tensor:
    """Returns ((1 + l) / L)^0.7: the group norm lets deeper layers through more strongly."""
    return torch.full(place.shape, ((1 + place.layer) / place.config.n_layer) ** 0.7)


def decay_curve(place: InitContext) -> Tensor:
    """Returns full_ramp^(0.7 + 1.3 depth): from 0 to 1, the later the deeper the layer."""
    return place.full_ramp ** (0.7 + 1.3 * place.depth)


NORMS = (
    Row("blocks.*.ln0.weight", ones),
    Row("blocks.*.ln0.bias", zeros),
    Row("blocks.*.ln1.weight", ones),
    Row("blocks.*.ln1.bias", zeros),
    Row("blocks.*.ln2.weight", ones),
    Row("blocks.*.ln2.bias", zeros),
    Row("ln_out.weight", ones),
    Row("ln_out.bias", zeros),
)
HEAD = Row("head.weight", orthogonal(0.5, grows=True), decayed=True)
# Decayed as in RWKV-LM: towards zero, the empty state.
TIME_STATE = Row("blocks.*.att.time_state", zeros, decayed=True)
# Tensors of an adapter, which `adapters` gives their values.
ADAPTER_MATRIX = Row("blocks.*.*.*.lora_*", zeros, decayed=True)
ADAPTER_LENGTHS = Row("blocks.*.*.*.lora_magnitude", zeros)
