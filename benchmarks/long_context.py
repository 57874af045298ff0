"""Memory and time of long samples, read in chunks of a fixed length and read whole.

    python -m benchmarks.long_context [--layers 4 --width 256 --vocab 4096 --chunk_len 4096]
                                      [--lengths 4096,16384,65536] [--whole_up_to 16384]
                                      [--versions 7] [--precision fp32|bf16] [--grad_cp]

One sample, forward and backward. Memory is the peak of allocated bytes above what was allocated
before the step (parameters and their gradients): on a CPU every allocation of torch is added up, on
a GPU the allocator is asked. Times are medians, on a CPU of processor time summed over threads;
ratios are within one run. Refuses to print when
the gradients of the chunks are not those of the whole sample.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.schema import ModelConfig
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model
from rwkv_train.ops.head_loss import Targets


def make_model(version: str, options: argparse.Namespace, device: torch.device) -> RWKV:
    """Returns a model whose gradients are all there and none of them zero."""
    config = complete_model(
        ModelConfig(
            rwkv_version=version,
            n_layer=options.layers,
            n_embd=options.width,
            vocab_size=options.vocab,
        )
    )
    model = build_model(config, grad_cp=options.grad_cp, wkv_backend=options.backend)
    initialize(model, seed=0, lr_init=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
            parameter.grad = torch.zeros_like(parameter)
    return model.to(device)


class Step:
    """Forward and backward of one sample of a length, whole or in chunks."""

    def __init__(
        self, model: RWKV, length: int, chunk_len: int | None, options: argparse.Namespace
    ) -> None:
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(length)
        text = torch.randint(options.vocab, (1, length + 1), generator=generator).to(device)
        self.model, self.chunk_len, self.device = model, chunk_len, device
        self.tokens, self.targets = text[:, :-1], text[:, 1:]
        self.dtype = DTYPES[options.precision]

    def __call__(self) -> None:
        self.model.chunk_len = self.chunk_len
        autocast = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=autocast):
            loss = self.model.loss(self.tokens, Targets(self.targets))
        loss.backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self) -> float:
        """Returns the duration; on a CPU the time this process worked, whatever else runs there."""
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        began = clock()
        self()
        return clock() - began

    def peak_bytes(self) -> int:
        """Returns the most bytes allocated at a time beyond those from before the step."""
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self()
            return torch.cuda.max_memory_allocated() - before
        profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        with _quiet():
            profiler.start()
        self()
        with _quiet():
            profiler.stop()
        events = profiler.profiler.kineto_results.events()
        changes = sorted(
            (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
        )
        return max(accumulate(size for _, size in changes), default=0)

    def gradients(self) -> list[Tensor]:
        """Returns the gradient of every parameter by this step alone."""
        for parameter in self.model.parameters():
            parameter.grad.zero_()
        self()
        return [parameter.grad.clone() for parameter in self.model.parameters()]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences stderr, where the profiler's library reports that it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check(model: RWKV, options: argparse.Namespace) -> float:
    """Returns the largest relative RMS difference of a gradient, whole to chunks of a third."""
    length = 3 * 64 + 5
    whole = Step(model, length, None, options).gradients()
    chunks = Step(model, length, 64, options).gradients()
    return max(
        ((a - b).norm() / a.norm().clamp_min(1e-30)).item()
        for a, b in zip(whole, chunks)
        if a.norm() > 0
    )


def report(version: str, options: argparse.Namespace, device: torch.device) -> None:
    """Prints a line per length."""
    model = make_model(version, options, device)
    difference = check(model, options)
    limit = 1e-3 if options.precision == "fp32" else 0.1
    if not difference < limit:
        raise SystemExit(f"RWKV-{version}: gradients of chunks differ by {difference:.1e}")
    first = None
    for length in map(int, options.lengths.split(",")):
        chunked = Step(model, length, options.chunk_len, options)
        # The allocator and the kernels are warm when the clock runs.
        peak = chunked.peak_bytes()
        first = first or peak
        steps = [chunked]
        if length <= options.whole_up_to:
            steps.append(Step(model, length, None, options))
            most = steps[1].peak_bytes()
        # in turns, so that both meet the same machine
        times = [[step.seconds() for step in steps] for _ in range(options.repeats)]
        seconds, *whole = map(statistics.median, zip(*times))
        line = (
            f"RWKV-{version:<4}{length:>8}{peak / 2**20:>12.1f}{peak / first:>10.3f}"
            f"{length / seconds:>10.0f}"
        )
        if whole:
            line += f"{most / 2**20:>14.1f}{seconds / whole[0]:>14.2f}"
        print(line, flush=True)


def main() -> None:
    """Runs what the module's docstring describes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--chunk_len", type=int, default=4096)
    parser.add_argument("--lengths", default="4096,16384,65536")
    parser.add_argument("--whole_up_to", type=int, default=16384)
    parser.add_argument("--versions", default="7")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--grad_cp", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"L{options.layers} D{options.width} V{options.vocab}, one sample, {options.precision}, "
        f"chunks of {options.chunk_len}"
    )
    print(
        f"{'version':<9}{'ctx_len':>8}{'peak MiB':>12}{'/ first':>10}{'tokens/s':>10}"
        f"{'whole MiB':>14}{'time / whole':>14}"
    )
    for version in options.versions:
        report(version, options, device)


if __name__ == "__main__":
    main()
