"""The training loop's own share of a step: what `train.py` adds to forward, backward, optimizer.

    python -m benchmarks.loop [--layers 4 --width 192 --ctx_len 256 --batch 8 --version 6]
                              [--steps 40] [--clock wall|processor] [--profile]
                              [-- flags of train.py]

A run of train.py in this process, with clocks around forward, backward, gradient norm, optimizer
and the gradients' release; what is left of the time from step to step is the loop: Lightning, the
veto, loader, logs. Shares are within single steps, so that a busy machine changes both sides alike;
printed are those of the median step. The bytes vocabulary (257) and random tokens, as the demo's
shape. --clock processor: the main thread's processor time in place of the wall's, for a machine
whose other programs interrupt the loop and the loader's processes.
--profile: also the functions in which the loop spends its time, by cProfile.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

VOCABULARY = 257
WARM_UP = 5
PARTS = ("forward", "backward", "norm", "optimizer", "release")
CLOCKS = {"wall": time.perf_counter, "processor": time.thread_time}


class StepClocks:
    """Seconds of each step, in all and by part; clocks are put in by `install`.

    A part that runs inside another one counts for itself only.
    """

    def __init__(
        self, profile: cProfile.Profile | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self.steps: list[dict[str, float]] = []
        self._parts: dict[str, float] = defaultdict(float)
        self._inner = [0.0]
        self._began = 0.0
        self._profile = profile

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function` with a clock that adds to a part."""

        def timed(*arguments: Any, **options: Any) -> Any:
            self._pause()
            began = self._clock()
            self._inner.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                seconds = self._clock() - began
                self._parts[name] += seconds - self._inner.pop()
                self._inner[-1] += seconds
                self._resume()

        return timed

    def loop(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `function`, inside of which the loop's own work is called back."""

        def timed(*arguments: Any, **options: Any) -> Any:
            began = self._clock()
            self._inner.append(0.0)
            self._resume()
            try:
                return function(*arguments, **options)
            finally:
                self._pause()
                self._inner.pop()
                self._inner[-1] += self._clock() - began

        return timed

    def begin_step(self) -> None:
        """Ends the step before and begins the next."""
        now = self._clock()
        if self._began:
            self.steps.append({"step": now - self._began, **self._parts})
        self._parts.clear()
        self._began = now

    def end(self) -> None:
        """Stops profiling: what follows is the end of the run."""
        self._pause()
        self._profile = None

    def _pause(self) -> None:
        if self._profile is not None and len(self.steps) >= WARM_UP:
            self._profile.disable()

    def _resume(self) -> None:
        if self._profile is not None and len(self.steps) >= WARM_UP:
            self._profile.enable()


def install(clocks: StepClocks, put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Puts clocks into the parts of a run that is to come in this process.

    put: as setattr; tests take one that can be undone.
    """
    from rwkv_train.models.backbone import RWKV
    from rwkv_train.training import module
    from rwkv_train.training.step_callback import StepCallback

    put(RWKV, "loss_and_state", clocks.around("forward", RWKV.loss_and_state))
    put(torch.Tensor, "backward", clocks.around("backward", torch.Tensor.backward))
    put(module, "clip_gradients", clocks.around("norm", module.clip_gradients))
    zero_grad = torch.optim.Optimizer.zero_grad
    put(torch.optim.Optimizer, "zero_grad", clocks.around("release", zero_grad))
    begin, start = StepCallback.on_train_batch_start, StepCallback.on_train_start
    end = StepCallback.on_train_end

    def on_train_batch_start(self: Any, *arguments: Any) -> None:
        clocks.begin_step()
        begin(self, *arguments)

    def on_train_start(self: Any, trainer: Any, pl_module: Any) -> None:
        start(self, trainer, pl_module)
        optimizer = trainer.optimizers[0]
        step = optimizer.step

        def with_closure(closure: Any = None, **options: Any) -> Any:
            return step(None if closure is None else clocks.loop(closure), **options)

        optimizer.step = clocks.around("optimizer", with_closure)

    def on_train_end(self: Any, *arguments: Any) -> None:
        clocks.end()
        end(self, *arguments)

    put(StepCallback, "on_train_batch_start", on_train_batch_start)
    put(StepCallback, "on_train_start", on_train_start)
    put(StepCallback, "on_train_end", on_train_end)


def command_line(options: argparse.Namespace, folder: Path) -> list[str]:
    """Returns the flags of the run, whose data it writes into `folder`."""
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=1 << 20, dtype=np.uint16)
    tokens.tofile(folder / "tokens")
    values = {
        "data_file": folder / "tokens",
        "data_type": "uint16",
        "proj_dir": folder / "out",
        "rwkv_version": options.version,
        "n_layer": options.layers,
        "n_embd": options.width,
        "vocab_size": VOCABULARY,
        "ctx_len": options.ctx_len,
        "micro_bsz": options.batch,
        "max_steps": options.steps + WARM_UP + 1,
        "epoch_steps": 200,
        "accelerator": options.accelerator,
        "devices": 1,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def main() -> int:
    """Runs what the module's docstring describes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", default="6")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--ctx_len", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--accelerator", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("flags", nargs="*")
    options = parser.parse_args()
    from rwkv_train.training.__main__ import main as train

    profile = cProfile.Profile() if options.profile else None
    clocks = StepClocks(profile, CLOCKS[options.clock])
    install(clocks)
    with tempfile.TemporaryDirectory() as folder:
        status = train([*command_line(options, Path(folder)), *options.flags])
    if status:
        return status
    steps = clocks.steps[WARM_UP:]
    shares = {
        part: statistics.median(step.get(part, 0.0) / step["step"] for step in steps)
        for part in PARTS
    }
    loop = statistics.median(
        1 - sum(step.get(part, 0.0) for part in PARTS) / step["step"] for step in steps
    )
    step = statistics.median(step["step"] for step in steps)
    print(
        f"RWKV-{options.version} L{options.layers} D{options.width}, {options.batch} x "
        f"{options.ctx_len}, {torch.get_num_threads()} threads, {len(steps)} steps, "
        f"{options.clock} time: "
        f"{1e3 * step:.1f} ms a step; "
        + ", ".join(f"{part} {share:.1%}" for part, share in shares.items())
        + f"; the loop {loop:.2%} ({1e3 * loop * step:.2f} ms)"
    )
    if profile is not None:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)
    return 0


if __name__ == "__main__":
    sys.exit(main())
