"""Explains the end of a run for want of memory: what is largest, and what takes less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import TrainerError, TrainingError, is_out_of_memory
from rwkv_train.training.start.memory_forecast import MemoryForecast, parts_words, size_words
from rwkv_train.training.start.memory_limits import peak_resident_bytes

# On a CPU bytes, on a GPU with a unit.
_ASKED = re.compile(r"tried to allocate (?:(\d+) bytes|([\d.]+ [KMG]?i?B))", re.IGNORECASE)


@contextmanager
def out_of_memory_explained(config: ResolvedConfig, forecast: MemoryForecast) -> Iterator[None]:
    """Turns the want of memory inside the context into a TrainingError of one line."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # Without the error's frames, whose tensors what is left to do may need the memory of.
        error.__traceback__ = None
        raise TrainingError(_explained(error, config, forecast)) from None


def _explained(error: Exception, config: ResolvedConfig, forecast: MemoryForecast) -> str:
    asked = _ASKED.search(str(error))
    more = ""
    if asked is not None:
        size = asked[2] or size_words(int(asked[1]))
        more = f", and {size} more were asked for"
    parts = [f"out of memory: {_held(config)}{more}"]
    runs = []
    if forecast.plan is not None:
        largest = parts_words(forecast.plan, 1)
        parts.append(f"{forecast.size()} were predicted, most of it {largest}")
        # What should have fitted needs less than there seemed to be.
        runs = [] if forecast.share() <= 1 else forecast.smaller()
        runs = runs or forecast.clearly_smaller()
    parts.append("checkpoints and training state are as they were last saved")
    if runs:
        parts.append(f"to go on from them with less, add {forecast.words(runs)}")
    parts.append("see docs/out_of_memory.md")
    return "; ".join(parts)


def _held(config: ResolvedConfig) -> str:
    """Returns what the device, or the system, says was taken."""
    if config.hardware.accelerator == "gpu":
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return (
            f"of the GPU {size_words(allocated)} were allocated at most, "
            f"{size_words(reserved)} reserved"
        )
    return f"this process has held {size_words(peak_resident_bytes())}"
