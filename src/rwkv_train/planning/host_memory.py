"""Bytes in a machine's own memory beside its cards: copies of saves, an offloaded optimizer."""

from __future__ import annotations

from typing import NamedTuple

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.planning.held_parameters import copied_bytes, count_elements

# Bytes of a parameter's master, moments and gradient.
_OFFLOADED = 16


class HostMemory(NamedTuple):
    """Bytes in the memory of one machine, without libraries and the system's cache of files.

    saves: copies of weights and moments while a state is written; offloaded: masters, moments and
    gradients that cards have given away.
    """

    saves: int
    offloaded: int


def host_memory(config: ResolvedConfig) -> HostMemory:
    """Returns what each machine holds for its cards; on a CPU nothing, all is its processes' own.

    Where one process writes the states it is the first machine. Raises ConfigError for a version
    whose tensors are not listed.
    """
    hardware = config.hardware
    # Initial weights are made and written by one process, with nothing beside.
    if hardware.accelerator != "gpu" or config.train.train_stage == 1:
        return HostMemory(0, 0)
    found = count_elements(config)
    offloads = "offload" in hardware.strategy
    return HostMemory(
        saves=copied_bytes(config, found, hardware.num_nodes),
        offloaded=_OFFLOADED * found.learnt // hardware.num_nodes if offloads else 0,
    )
