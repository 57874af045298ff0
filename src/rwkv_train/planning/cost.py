"""Time, GPU-hours, energy and price of a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunCost:
    """A run over a number of tokens.

    flops: of the model, without what is done twice.  devices: cards that compute together.
    price: of a card and hour, None where it was not given; watts: of a card, None: not known.
    """

    tokens: float
    flops: float
    tokens_per_second: float
    devices: int
    price: float | None
    watts: float | None

    @property
    def seconds(self) -> float:
        """Seconds from the first step to the last, without stops, saves and validations."""
        return self.tokens / self.tokens_per_second

    @property
    def gpu_hours(self) -> float:
        """Hours of one card."""
        return self.devices * self.seconds / 3600

    @property
    def energy(self) -> float | None:
        """Kilowatt-hours of the cards alone at their board power."""
        return None if self.watts is None else self.gpu_hours * self.watts / 1000

    @property
    def money(self) -> float | None:
        """The price of all GPU-hours, in the unit of `price`."""
        return None if self.price is None else self.gpu_hours * self.price


def speed_at(mfu: float, rate: float, devices: int, model_flops: float) -> float:
    """Returns tokens per second of all devices at a share of their rate.

    rate: FLOP/s of a device; model_flops: of a token, forward and backward.
    """
    return mfu * rate * devices / model_flops
