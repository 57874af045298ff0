"""Writing one token after the other on a CPU: tokens/s, and the share of the memory's bandwidth.

    python -m benchmarks.decode [--versions 4 7] [--precisions fp32 bf16 int8] [--layers 12]
                                [--width 768] [--vocab 65536] [--threads 1] [--rounds 7]
                                [--tokens 6] [--positions 10 2000] [--prefill 256] [--no_peers]
                                [--clock cpu]

Beside the package `rwkv` and, for RWKV-4, transformers, where they are installed; all take turns,
so that a disturbance meets all. The bandwidth is that of a sum over 400 MB of fp32, in the same
turns and by as many threads: in pages as they come (4 KiB) and in those of 2 MiB, where our weights
are. A token reads every weight but the embedding once: its bytes over its time is what is compared
with both. Times are medians over rounds; with --clock cpu of processor time, for one thread
on a machine that is shared. --prefill: tokens of a prompt, read by the engine and by the model's
own forward pass without the head. --positions: places behind which our engine writes, in turn.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.schema import ModelConfig
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.huge_pages import move_together
from rwkv_train.models.int8 import round_to_int8
from rwkv_train.models.registry import build_model

READ_BYTES = 400 * 2**20
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Decoder(NamedTuple):
    """A program that writes a token a call, and the bytes of weights that it reads for it."""

    name: str
    write: Callable[[], object]
    weight_bytes: int


def make_model(version: str, precision: str, a: argparse.Namespace) -> RWKV:
    """Returns a model of random weights; int8: the rest of it in bf16."""
    sizes = {"n_layer": a.layers, "n_embd": a.width, "vocab_size": a.vocab}
    model = build_model(complete_model(ModelConfig(rwkv_version=version, **sizes)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(-0.03, 0.03, generator=generator)
            if ".ln" in name and name.endswith("weight"):
                parameter += 1
    model = model.to(DTYPES["bf16" if precision == "int8" else precision]).eval()
    model = model.requires_grad_(False)
    if precision == "int8":
        round_to_int8(model)
    return model


def own_decoders(model: RWKV, name: str, positions: list[int]) -> list[Decoder]:
    """Returns our engine behind prompts of so many tokens."""
    engine = Engine(model)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    read = sum(t.numel() * t.element_size() for n, t in tensors if n != "emb.weight")

    def behind(position: int) -> Callable[[], None]:
        _, now = engine.prefill([[n % 251 for n in range(position)]])

        def write() -> None:
            _, now[:] = engine.step([7], now)

        return write

    more = len(positions) > 1
    return [Decoder(f"{name}, at {p:,}" if more else name, behind(p), read) for p in positions]


def rwkv_package(model: RWKV, version: str, precision: str, folder: Path) -> Decoder | None:
    """Returns the `rwkv` package with the same weights; None where it is not installed."""
    # It reads them when it is imported.
    os.environ["RWKV_JIT_ON"] = "1"
    os.environ["RWKV_V7_ON"] = "1" if version == "7" else "0"
    for name in [name for name in sys.modules if name.partition(".")[0] == "rwkv"]:
        del sys.modules[name]
    try:
        from rwkv import model as module
    except ImportError:
        return None
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    path = folder / f"peer-{version}"
    torch.save(weights, path.with_suffix(".pth"))
    package = module.RWKV(model=str(path), strategy=f"cpu {precision}")
    state = [package.forward([1, 2, 3], None)[1]]

    def write() -> None:
        _, state[0] = package.forward([7], state[0])

    size = DTYPES[precision].itemsize
    read = sum(value.numel() * size for name, value in weights.items() if name != "emb.weight")
    return Decoder(f"rwkv package, {precision}", write, read)


def transformers_rwkv4(precision: str, a: argparse.Namespace) -> Decoder | None:
    """Returns transformers' RWKV-4 of the same sizes; None where it is not installed."""
    try:
        from transformers import RwkvConfig, RwkvForCausalLM
    except ImportError:
        return None
    config = RwkvConfig(
        vocab_size=a.vocab,
        hidden_size=a.width,
        num_hidden_layers=a.layers,
        intermediate_size=4 * a.width,
        rescale_every=0,
    )
    model = RwkvForCausalLM(config).to(DTYPES[precision]).eval()
    tokens = torch.tensor([[7]])
    with torch.no_grad():
        state = [model(torch.tensor([[1, 2, 3]]), use_cache=True).state]

    def write() -> None:
        with torch.no_grad():
            state[0] = model(tokens, state=state[0], use_cache=True).state

    read = sum(p.numel() * p.element_size() for p in model.parameters())
    lookup = model.get_input_embeddings().weight
    return Decoder(
        f"transformers, {precision}", write, read - lookup.numel() * lookup.element_size()
    )


def decoders_of(version: str, a: argparse.Namespace, folder: Path) -> list[Decoder]:
    """Returns ours in every precision, then the peers."""
    found: list[Decoder | None] = []
    for precision in a.precisions:
        model = make_model(version, precision, a)
        found += own_decoders(model, f"ours, {precision}", a.positions)
        if a.no_peers or precision == "int8":
            continue
        found.append(rwkv_package(model, version, precision, folder))
        if version == "4":
            found.append(transformers_rwkv4(precision, a))
    return [decoder for decoder in found if decoder is not None]


def seconds_of(work: Callable[[], object], clock: Callable[[], float], calls: int) -> float:
    """Returns the seconds of one call."""
    start = clock()
    for _ in range(calls):
        work()
    return (clock() - start) / calls


def compare(version: str, a: argparse.Namespace, folder: Path) -> None:
    """Prints a row of the table for every decoder of a version."""
    numbers, in_huge_pages = torch.ones(READ_BYTES // 4), torch.ones(READ_BYTES // 4)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        move_together([in_huge_pages])
    clock = CLOCKS[a.clock]
    decoders = decoders_of(version, a, folder)
    reads: list[tuple[float, float]] = []
    seconds: dict[str, list[float]] = {decoder.name: [] for decoder in decoders}
    for attempt in range(a.rounds + 1):
        read = seconds_of(numbers.sum, clock, 1), seconds_of(in_huge_pages.sum, clock, 1)
        taken = {d.name: seconds_of(d.write, clock, a.tokens) for d in decoders}
        # The first round records, allocates and warms up.
        if attempt:
            reads.append(read)
            for name, one in taken.items():
                seconds[name].append(one)
    usual, huge = (READ_BYTES / statistics.median(column) for column in zip(*reads))
    for decoder in decoders:
        middle = statistics.median(seconds[decoder.name])
        speed = decoder.weight_bytes / middle
        print(
            f"| {version} | {decoder.name} | {decoder.weight_bytes / 1e6:.0f} | "
            f"{1e3 * middle:.1f} | {1 / middle:.1f} | {speed / 1e9:.1f} of {usual / 1e9:.1f}, "
            f"{huge / 1e9:.1f} | {100 * speed / usual:.0f} % | {100 * speed / huge:.0f} % |",
            flush=True,
        )


def compare_prefill(version: str, a: argparse.Namespace) -> None:
    """Prints tokens/s of a prompt through the engine and through the forward pass of training."""
    clock, prompt = CLOCKS[a.clock], [n % 251 for n in range(a.prefill)]
    for precision in a.precisions:
        model = make_model(version, precision, a)
        engine, tokens = Engine(model), torch.tensor([prompt])

        def forward(model: RWKV = model, tokens: torch.Tensor = tokens) -> None:
            with torch.no_grad():
                model.features(tokens)

        def prefill(engine: Engine = engine) -> None:
            engine.prefill([prompt])

        times = [[seconds_of(w, clock, 1) for w in (prefill, forward)] for _ in range(4)][1:]
        ours, forwards = (len(prompt) / statistics.median(column) for column in zip(*times))
        print(f"RWKV-{version}, {precision}: prefill {ours:.0f}, forward {forwards:.0f} tokens/s")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add = parser.add_argument
    add("--versions", nargs="+", default=["4", "5", "6", "7"])
    add("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    for name, number in (("layers", 12), ("width", 768), ("vocab", 65536), ("threads", 1)):
        add(f"--{name}", type=int, default=number)
    for name, number in (("rounds", 7), ("tokens", 6), ("prefill", 0)):
        add(f"--{name}", type=int, default=number)
    add("--positions", nargs="+", type=int, default=[10])
    add("--no_peers", action="store_true")
    add("--clock", choices=CLOCKS, default="wall")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(f"L{a.layers} D{a.width} V{a.vocab}, {a.threads} threads, positions {a.positions}")
    print(
        "| RWKV | program | weights, MB | ms a token | tokens/s | GB/s of the sum's, 4 KiB and "
        "2 MiB pages | share, 4 KiB | share, 2 MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for version in a.versions:
            compare(version, a, Path(folder))
    for version in a.versions if a.prefill else ():
        compare_prefill(version, a)


if __name__ == "__main__":
    main()
