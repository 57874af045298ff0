"""Settings that fit, and the cards there are, as tables that people read."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_train.planning.amounts import decimal_bytes, gib, short_count
from rwkv_train.planning.cards import CARDS
from rwkv_train.planning.fit import Fitting
from rwkv_train.planning.host_memory import host_memory
from rwkv_train.planning.plan import Device
from rwkv_train.planning.text_table import text_table

_TRAINS = {"all": "full training", "lora": "LoRA", "states": "states"}


def fit_lines(found: Sequence[Fitting], device: Device, devices: int) -> list[str]:
    """Returns the lines of settings that fit; flags to be added to those that were given."""
    memory = gib(device.memory or 0)
    each = "" if devices == 1 else f" of each of {devices} devices"
    if not found:
        return [
            f"Nothing fits into {memory}{each}, not even states with one sample a pass: take a "
            "smaller model, a smaller --ctx_len, or more devices."
        ]
    best = max(run.speed for run in found)
    rows = [
        (
            _TRAINS[run.config.train.train_type],
            gib(run.memory.total),
            _speed(run, best, device),
            run.flags or "(as given)",
        )
        for run in found
    ]
    lines = [
        f"What fits into {memory}{each}, the best first; the flags go behind those given:",
        *text_table(("trains", "memory", "speed", "flags"), rows, "lrrl"),
    ]
    if all(run.config.train.train_type != "all" for run in found):
        lines.append("Full training does not fit.")
    held = max(host_memory(run.config).offloaded for run in found)
    if held:
        lines.append(f"Offloading keeps about {decimal_bytes(held)} in the machine's own memory.")
    return lines


def card_lines() -> list[str]:
    """Returns the table of cards."""
    rows = [
        (
            card.name,
            f"{card.memory_gb:g}",
            f"{card.rate / 1e12:,.0f}",
            f"{card.bandwidth / 1e9:,.0f}",
            f"{card.link / 1e9:,.0f}",
            f"{card.watts:,.0f}",
            "bf16" if card.has_bf16 else "fp16",
            card.source,
        )
        for card in CARDS
    ]
    heads = ("card", "GB", "TFLOP/s", "GB/s", "link GB/s", "W", "16 bits", "source")
    return text_table(heads, rows, "lrrrrrll")


def _speed(run: Fitting, best: float, device: Device) -> str:
    if not run.speed:
        return "-"
    if device.card is None:
        return f"{run.speed / best:.0%} of the best"
    return f"{short_count(run.speed)} tokens/s"
