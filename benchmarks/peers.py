"""Our whole training step beside those of other projects, in turn in one run.

    python -m benchmarks.peers [--layers 12 --width 768 --vocab 4096 --ctx_len 512 --batch 4]
        [--precision fp32|bf16] [--weights fp32|bf16] [--versions 4567] [--rounds 5]
        [--nano_rwkv FOLDER] [--transformers FOLDER] [--fla FOLDER] [--rwkv_lm FOLDER]
        [--keep_heap 0|1] [--products chosen|torch] [--clock wall|processor] [--picture FILE.png]

A GPT with torch's fused attention is always there; the others are told when they are absent.
Every round makes one step of each and one plain product [B T, D] x [D, 4 D]; the figures are
medians over rounds of tokens/s, of the ratio to the GPT and to nanoRWKV in the same round, and of
the step's products with weights per second as a share of the plain product's rate in that round.
All share one process and one allocator. Ours is trained as `train.py` does (its head loss with
L2Wrap, its optimizer); the others with cross entropy and torch's fused AdamW. --weights bf16: ours
with fp32 masters, the others without any, which is less work. On a CPU fp32 products are those that
`train.py` chooses, for all alike, and where that is not torch's choice the GPT is there once more
with that; --products torch: as torch takes them. --clock processor: processor time in place of
the wall's, for a machine with other work on it; with one thread, for waiting threads count too.

Before anything is timed, a peer that computes the function of one of our versions gives that its
weights, and the losses of both are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks import peer_adapters
from benchmarks.peer_adapters import ADAPTERS, AbsentPeerError, Peer
from benchmarks.peer_contestants import (
    Contestant,
    as_torch_multiplies,
    own_contestant,
    peer_contestant,
)
from benchmarks.peers_plot import plot
from rwkv_train.inference.loading import load_model
from rwkv_train.training.kept_heap import keep_heap
from rwkv_train.training.whole_step import (
    TimedShape,
    dtype_named,
    own_loss,
    plain_product,
    products_chosen,
    random_batch,
    seconds_of,
)

# Losses of one function; bf16 keeps three digits of every number on the way.
SAME_LOSS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
GPT_NAME, NANO_NAME = "GPT", "nanoRWKV"
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


class Timing(NamedTuple):
    """Medians over the rounds; ratios are within a round, None where there is nothing to compare.

    of_product: of the plain product's rate.
    """

    name: str
    tokens_per_second: float
    times_gpt: float | None
    times_nano: float | None
    of_product: float


def main(argv: list[str] | None = None) -> int:
    """Runs what the module's docstring describes; returns the exit status."""
    options = _options(argv)
    shape = TimedShape(options.layers, options.width, options.vocab, options.ctx_len, options.batch)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    heap = keep_heap() if device.type == "cpu" and options.keep_heap else "as it is"
    dtype = dtype_named(options.precision)
    chosen = products_chosen(device, options.products)
    print(
        f"{machine(device)}; {shape}, products in {options.precision}, weights in "
        f"{options.weights}, heap {heap}, products {chosen}, {options.clock} time",
        flush=True,
    )
    peers = present_peers(options, shape, device)
    agreed = [same_loss(peer, shape, device, dtype) for peer in peers]
    if not all(agreed):
        return 1
    contestants = [peer_contestant(peer, shape, device, options) for peer in peers]
    contestants += [own_contestant(v, shape, device, options) for v in options.versions]
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        contestants.append(as_torch_multiplies(contestants[0]))
    product, flops = plain_product(device, dtype, shape)
    timed = [*contestants, Contestant("", product, flops, 0)]
    rounds = timed_rounds(timed, options.rounds, device, CLOCKS[options.clock])
    timings = [timing_of(i, contestants, rounds, shape, flops) for i in range(len(contestants))]
    rate = statistics.median(flops / row[-1] for row in rounds)
    print_table(timings, contestants, rate)
    if options.picture is not None:
        title = f"{shape}, {options.precision}; plain product {rate / 1e9:,.0f} GFLOP/s"
        plot(
            [(t.name, t.tokens_per_second) for t in timings],
            title,
            machine(device),
            options.picture,
        )
    return 0


def machine(device: torch.device) -> str:
    """Returns what the figures are of."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def present_peers(
    options: argparse.Namespace, shape: TimedShape, device: torch.device
) -> list[Peer]:
    """Returns the GPT and the peers whose folders were given; tells who is absent."""
    found = [peer_adapters.plain_gpt(shape)]
    for flag, adapter in ADAPTERS.items():
        folder = getattr(options, flag)
        try:
            if folder is None:
                raise AbsentPeerError(f"no folder was given with --{flag}")
            found.append(adapter(Path(folder).expanduser(), shape, device))
        except AbsentPeerError as absent:
            print(f"absent: {flag}: {absent}", flush=True)
    return found


def same_loss(peer: Peer, shape: TimedShape, device: torch.device, dtype: torch.dtype) -> bool:
    """Tells whether a peer's loss is ours with the same weights, where the function is the same."""
    peer.model.to(device)
    if peer.write is None:
        return True
    spread_weights(peer.model)
    tokens, targets = random_batch(shape, device)
    kind = peer.dtype or dtype
    if peer.dtype is not None:
        peer.model.to(peer.dtype)
    with tempfile.TemporaryDirectory() as folder:
        written = peer.write(Path(folder))
        ours = load_model(written, device=device, dtype=torch.float32)
    with torch.no_grad(), torch.autocast(device.type, kind, enabled=kind != torch.float32):
        theirs, own = peer.loss(tokens, targets).item(), own_loss(ours)(tokens, targets).item()
    error = abs(theirs - own) / abs(own)
    same = error <= SAME_LOSS[kind]
    told = "the same function" if same else "ANOTHER FUNCTION THAN OURS"
    print(f"{peer.name}: loss {theirs:.6f}, ours {own:.6f} with its weights: {told}", flush=True)
    return same


def spread_weights(model: nn.Module) -> None:
    """Adds noise to all weights: initial ones, often zero, would hide half of a function."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            size = 0.3 / parameter.shape[-1] ** 0.5 if parameter.dim() == 2 else 0.05
            parameter.add_((size * noise).to(parameter))


def timed_rounds(
    contestants: list[Contestant],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Returns a list per round of how long each took, after a round that warms up.

    Every round begins with another of them, so that none is always behind the same one.
    """
    found = []
    for number in range(rounds + 1):
        row = [0.0] * len(contestants)
        for place in range(len(contestants)):
            i = (place + number) % len(contestants)
            row[i] = seconds_of(contestants[i].step, device, clock)
        if number:
            found.append(row)
    return found


def timing_of(
    index: int,
    contestants: list[Contestant],
    rounds: list[list[float]],
    shape: TimedShape,
    product_flops_each: float,
) -> Timing:
    """Returns the figures of one contestant; the last of every round is the plain product."""
    names = [contestant.name for contestant in contestants]

    def times(name: str) -> float | None:
        if name not in names:
            return None
        return statistics.median(row[names.index(name)] / row[index] for row in rounds)

    rate = contestants[index].flops / product_flops_each
    return Timing(
        names[index],
        statistics.median(shape.tokens / row[index] for row in rounds),
        times(GPT_NAME),
        times(NANO_NAME),
        statistics.median(rate * row[-1] / row[index] for row in rounds),
    )


def print_table(timings: list[Timing], contestants: list[Contestant], rate: float) -> None:
    """Prints the figures of all."""
    print(f"a plain product with a warm result reaches {rate / 1e9:,.0f} GFLOP/s")
    print(
        f"{'':<22}{'parameters':>13}{'tokens/s':>10}{'x GPT':>8}{'x nanoRWKV':>12}"
        f"{'of product':>12}"
    )
    for timing, contestant in zip(timings, contestants):
        ratios = ["-" if x is None else f"{x:.2f}" for x in (timing.times_gpt, timing.times_nano)]
        print(
            f"{timing.name:<22}{contestant.parameters:>13,}{timing.tokens_per_second:>10,.0f}"
            f"{ratios[0]:>8}{ratios[1]:>12}{timing.of_product:>12.2f}"
        )


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("layers", 12),
        ("width", 768),
        ("vocab", 4096),
        ("ctx_len", 512),
        ("batch", 4),
        ("rounds", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("precision", "weights"):
        parser.add_argument(f"--{name}", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--versions", default="4567")
    parser.add_argument("--keep_heap", type=int, choices=(0, 1), default=1)
    parser.add_argument("--products", choices=("chosen", "torch"), default="chosen")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    for flag, adapter in ADAPTERS.items():
        parser.add_argument(f"--{flag}", metavar="FOLDER", help=(adapter.__doc__ or "").rstrip("."))
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args(argv)
    if options.weights == "bf16" and options.precision != "bf16":
        parser.error("--weights bf16 goes with --precision bf16")
    return options


if __name__ == "__main__":
    sys.exit(main())
