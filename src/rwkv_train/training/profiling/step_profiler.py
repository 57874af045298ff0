"""Profiles a few steps of a run, once they are warm, and writes what they are made of."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function, schedule

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.files import replacing, write_atomically
from rwkv_train.training.environment import quiet_profiler
from rwkv_train.training.profiling.operator_words import OperatorWords
from rwkv_train.training.profiling.profile_table import PAUSE_WORDS, add_up, write_table
from rwkv_train.training.reporting.reporter import warn_lost
from rwkv_train.training.run_clock import RunClock, no_label

# Steps before: the first allocate and choose kernels. One more warms the profiler itself.
WARM_UP = 3


class StepProfiler:
    """Watches the steps of this process; what they compute stays as it is.

    Writes proj_dir/profile-STEP.json.gz, which Perfetto and chrome://tracing show, and the largest
    items in words in profile-STEP.txt, STEP being the first profiled one, from 1. A fault ends the
    profile and not the run.
    """

    def __init__(self, config: ResolvedConfig, clock: RunClock) -> None:
        assert config.log.profile is not None, "only a run that asks for a profile has one"
        self._config = config
        self._clock = clock
        self._steps = config.log.profile
        self._on_gpu = config.hardware.accelerator == "gpu"
        self._seen = 0
        self._first = 0
        self._waited = 0.0
        self._profile: Any = None
        self._is_done = False

    def after_step(self, steps: int) -> bool:
        """Goes on after `steps` steps in all; returns whether a profile was written."""
        self._seen += 1
        if self._is_done or self._seen < WARM_UP:
            return False
        try:
            if self._seen == WARM_UP:
                self._begin()
                return False
            self._profile.step()
            if self._seen == WARM_UP + 1:
                self._first = steps + 1
                self._waited = self._clock.total("communication")
            if self._seen == WARM_UP + 1 + self._steps:
                self._end(complete=True)
                return True
        # Anything: what a profiler raises is no reason to lose a run.
        except Exception as error:
            self._give_up(error)
        return False

    def close(self) -> None:
        """Writes what there is of a profile that the run's end cut short, or says why not."""
        if self._is_done:
            return
        try:
            if self._seen > WARM_UP + 1:
                self._end(complete=False)
            else:
                self._is_done = True
                if self._profile is not None:
                    self._profile.stop()
                print(
                    f"no profile: --profile begins after {WARM_UP + 1} steps of a start, and this "
                    f"one had {self._seen}",
                    flush=True,
                )
        except Exception as error:
            self._give_up(error)

    def _begin(self) -> None:
        quiet_profiler()
        activities = [ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            record_shapes=True,
            schedule=schedule(wait=0, warmup=1, active=self._steps, repeat=1),
        )
        self._profile.start()
        self._clock.label = lambda purpose: record_function(PAUSE_WORDS[purpose])

    def _end(self, *, complete: bool) -> None:
        self._is_done = True
        self._clock.label = no_label
        waited = self._clock.total("communication") - self._waited
        self._profile.stop()
        name = f"profile-{self._first}"
        folder = Path(self._config.train.proj_dir)
        self._export(folder / f"{name}.json.gz")
        profiled = add_up(
            self._profile.events(),
            OperatorWords(self._config),
            on_gpu=self._on_gpu,
            waited_seconds=waited,
        )
        steps = profiled.steps
        cut = "" if complete else f" (of {self._steps}: the run ended)"
        heading = (
            f"profile of {steps} step{'s' * (steps != 1)} from step {self._first}{cut}: "
            f"{profiled.microseconds / 1e3 / max(steps, 1):,.1f} ms a step with the profiler's own "
            f"work; times of the {'card' if self._on_gpu else 'main thread'}:"
        )
        table = write_table(profiled, heading)
        write_atomically(folder / f"{name}.txt", table.encode())
        print(f"{table}saved {folder / name}.json.gz (open it at ui.perfetto.dev), {name}.txt")
        self._profile = None

    def _export(self, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(plain))
            with (
                replacing(path) as partial,
                plain.open("rb") as source,
                gzip.open(partial, "wb", compresslevel=5) as packed,
            ):
                shutil.copyfileobj(source, packed)

    def _give_up(self, error: Exception) -> None:
        self._is_done = True
        self._clock.label = no_label
        self._profile = None
        warn_lost("the profile", error)
