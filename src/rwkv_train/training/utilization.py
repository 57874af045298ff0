"""Sets a run's pace against what its devices could do: model FLOPs utilization (MFU)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.planning.cards import find_card
from rwkv_train.planning.flops import flops_per_token
from rwkv_train.planning.parameter_table import is_planned
from rwkv_train.training.start.product_rate import in_units, product_rate


class Utilization(NamedTuple):
    """The model's arithmetic and what all devices could do; rates in FLOP/s, None: not known.

    flops_per_token: forward and backward once each, so nothing that is recomputed.
    measured: by products of this run's shapes; card: by the data sheet.
    """

    flops_per_token: float = 0.0
    measured: float | None = None
    card: float | None = None

    def at(self, tokens_per_second: float) -> tuple[float | None, float | None]:
        """Returns the shares of both rates that the model's arithmetic takes at this pace."""
        flops = self.flops_per_token * tokens_per_second
        measured, card = (flops / rate if rate else None for rate in (self.measured, self.card))
        return measured, card


def find_utilization(config: ResolvedConfig) -> tuple[Utilization, list[tuple[str, str]]]:
    """Returns what MFU counts in, and the header's line about it; measures unless that is known.

    For the first rank, once it is settled who multiplies fp32 matrices: it measures one device.
    """
    if not is_planned(config.model.rwkv_version):
        return Utilization(), [("rate", "no MFU: the arithmetic of this version is not listed")]
    flops = float(flops_per_token(config).model_flops)
    hardware = config.hardware
    devices = hardware.devices * hardware.num_nodes
    rate = product_rate(config, anew=config.log.measure_rate)
    line = f"MFU is {in_units(flops)}FLOP a token of {rate.describe(hardware.precision)}"
    card = _card_rate(config)
    found = Utilization(flops, devices * rate.flops, None if card is None else devices * card)
    return found, [("rate", line)]


def _card_rate(config: ResolvedConfig) -> float | None:
    """Returns what the data sheet promises; None for a processor, and in 32 bits."""
    hardware = config.hardware
    if hardware.accelerator != "gpu" or hardware.precision not in ("bf16", "fp16"):
        return None
    card = find_card(torch.cuda.get_device_name())
    return None if card is None else card.rate
