"""Measures around the steps: pace, where the time goes, arithmetic used, memory."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch

from rwkv_train.config.resolved import ResolvedConfig, ResolvedHardware
from rwkv_train.config.run_length import RunLength
from rwkv_train.training.run_clock import RunClock
from rwkv_train.training.start.memory_limits import resident_bytes
from rwkv_train.training.utilization import Utilization


class StartSeconds(NamedTuple):
    """The seconds that a start took, until its first step; and reading the state, of it."""

    seconds: float
    reload: float


class StepMeter:
    """Takes the time of steps, from the first micro batch to the record.

    clock: counts what the time between goes into. run_began: when the program began, by
    `time.perf_counter`. reload_seconds: of reading the state, before there was a clock.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        length: RunLength,
        clock: RunClock,
        utilization: Utilization,
        run_began: float,
        reload_seconds: float,
    ) -> None:
        hardware = config.hardware
        self._tokens = length.tokens_per_step
        self.clock = clock
        self._utilization = utilization
        self._on_gpu = hardware.accelerator == "gpu"
        self._sees_communication = _sees_communication(hardware)
        self._run_began = run_began
        self._reload_seconds = reload_seconds
        self._began: float | None = None
        self.seconds = 0.0

    def start(self) -> StartSeconds:
        """Starts the clock; returns the seconds that the program took until here."""
        reload = self._reload_seconds + self.clock.total("reload")
        self.clock.start()
        return StartSeconds(time.perf_counter() - self._run_began, reload)

    def begin(self) -> None:
        """Begins the first step."""
        if self._began is None:
            self._began = time.perf_counter()

    def restart(self) -> None:
        """Begins the next step here: what was before is no step."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """Ends a step, of `seconds` since it began, and begins the next."""
        now = time.perf_counter()
        self.seconds = now - (now if self._began is None else self._began)
        self._began = now

    def figures(self) -> dict[str, Any]:
        """Returns the fields of `StepRecord` that are measured here, after `end`."""
        pace = self._tokens / max(self.seconds, 1e-9)
        mfu, mfu_card = self._utilization.at(pace)
        spent = self.clock.take()
        return {
            "tokens_per_second": pace,
            "seconds": spent.seconds,
            "data_share": spent.share("data"),
            "communication_share": (
                spent.share("communication") if self._sees_communication else None
            ),
            "save_share": spent.share("save"),
            "validation_share": spent.share("validation"),
            "mfu": mfu,
            "mfu_card": mfu_card,
            "memory": self._memory(),
        }

    def _memory(self) -> int | None:
        if self._on_gpu:
            return int(torch.cuda.max_memory_allocated())
        # 0 where the system does not tell.
        return resident_bytes() or None


def figures_left_out(hardware: ResolvedHardware) -> list[str]:
    """Returns which figures of a step this run does not have, a line each."""
    found = []
    if not _sees_communication(hardware):
        found.append(
            "communication_share is not measured: cards reduce beside the host, which would have "
            "to wait for them; --profile shows it"
        )
    if hardware.strategy.startswith("deepspeed"):
        found.append("no grad_norms by kind: every rank has its part of the gradients alone")
    return found


def _sees_communication(hardware: ResolvedHardware) -> bool:
    """Tells whether waits for ranks are the host's; of NCCL it sees the launches alone."""
    several = hardware.devices * hardware.num_nodes > 1
    return not (several and hardware.accelerator == "gpu")
