"""Memory of prompts of many lengths, and the speed of decoding behind them.

    python -m benchmarks.long_prompt [--layers 4 --width 256 --vocab 4096] [--versions 4567]
        [--precision fp32|bf16] [--lengths 1000,20000,200000] [--steps 64 --rounds 9]
        [--piece_tokens 1024]

Memory: every length is read in a process of its own, which has read a prompt of 4096 tokens before
(kernels, allocator). The peak is what the process held at most: resident memory on a CPU, allocated
memory on a GPU. "more" is what the length added to the peak from before; it includes the prompt's
own ids, 36 bytes each in a list of Python. Larger pieces (--piece_tokens) show what they cost.

Speed: the states behind all lengths are kept, and decoded from in turns within one process: medians
over the rounds, on a CPU of processor time. "of first" compares within a round.

Refuses to print when a prompt read in pieces leaves other logits than one read token by token.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.schema import ModelConfig
from rwkv_train.inference.engine.engine import PIECE_TOKENS, Engine
from rwkv_train.inference.engine.sequence_state import SequenceState
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model

# Logits of one text, read in pieces and token by token, by the largest logit.
SAME_LOGITS = {"fp32": 1e-4, "bf16": 0.1}
WARM_UP = 4096


class PromptCost(NamedTuple):
    """What reading a prompt took: bytes at most, those of them that its length added, tokens/s."""

    peak: int
    more: int
    rate: float


def make_engine(version: str, options: argparse.Namespace) -> Engine:
    """Returns an engine around a model in which no weight is zero."""
    config = complete_model(
        ModelConfig(
            rwkv_version=version,
            n_layer=options.layers,
            n_embd=options.width,
            vocab_size=options.vocab,
        )
    )
    model = build_model(config)
    initialize(model, seed=0, lr_init=1e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device, DTYPES[options.precision]).eval()
    return Engine(model, piece_tokens=options.piece_tokens)


def random_prompt(length: int, vocab: int) -> list[int]:
    """Returns ids; a prompt begins as every longer one."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocab, (length,), generator=generator).tolist()


def peak_bytes(device: torch.device) -> int:
    """Returns the most bytes that this process has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: on Linux it begins with what the parent held, and would hide the growth.
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found is not None:
            return 1024 * int(found.group(1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def clock(device: torch.device) -> float:
    """Returns seconds, on a CPU those this process worked, whatever else runs there."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def reading_cost(version: str, length: int, options: argparse.Namespace) -> PromptCost:
    """Returns what a prompt of a length costs; for a process that has done nothing else."""
    engine = make_engine(version, options)
    engine.prefill([random_prompt(WARM_UP, options.vocab)])
    before, start = peak_bytes(engine.device), clock(engine.device)
    engine.prefill([random_prompt(length, options.vocab)])
    seconds = clock(engine.device) - start
    peak = peak_bytes(engine.device)
    return PromptCost(peak, peak - before, length / seconds)


def states_behind(engine: Engine, lengths: list[int], vocab: int) -> list[SequenceState]:
    """Returns the states of one prompt at several places, in rising order."""
    prompt, states = random_prompt(lengths[-1], vocab), [engine.start()]
    for start, end in zip([0, *lengths], lengths):
        states.append(engine.prefill([prompt[start:end]], [states[-1]])[1][0])
    return states[1:]


def decoding_rates(
    engine: Engine, states: list[SequenceState], options: argparse.Namespace
) -> list[list[float]]:
    """Returns tokens/s behind every state, for every round."""
    return [
        [_rate(engine, state, options.steps) for state in states] for _ in range(options.rounds)
    ]


def _rate(engine: Engine, state: SequenceState, steps: int) -> float:
    states, token = [state], 5
    start = clock(engine.device)
    for _ in range(steps):
        logits, states = engine.step([token], states)
        token = int(logits.argmax())
    return steps / (clock(engine.device) - start)


def disagreement(engine: Engine, vocab: int) -> float:
    """Returns how far logits behind a prompt in pieces are from those token by token, relative."""
    prompt, states = random_prompt(200, vocab), [engine.start()]
    whole, _ = Engine(engine.model, piece_tokens=64).prefill([prompt])
    for token in prompt:
        logits, states = engine.step([token], states)
    return ((whole - logits).abs().max() / logits.abs().max()).item()


def report(version: str, options: argparse.Namespace) -> None:
    """Prints a line per length."""
    engine = make_engine(version, options)
    difference = disagreement(engine, options.vocab)
    if not difference < SAME_LOGITS[options.precision]:
        raise SystemExit(f"RWKV-{version}: logits of pieces differ by {difference:.1e}")
    rounds = decoding_rates(engine, states_behind(engine, options.lengths, options.vocab), options)
    for place, length in enumerate(options.lengths):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            cost = pool.apply(reading_cost, (version, length, options))
        rate = statistics.median(row[place] for row in rounds)
        of_first = statistics.median(row[place] / row[0] for row in rounds)
        print(
            f"RWKV-{version:<4}{length:>9}{cost.peak / 2**20:>11.0f}{cost.more / 2**20:>11.1f}"
            f"{cost.rate:>15.0f}{rate:>15.0f}{of_first:>10.2f}",
            flush=True,
        )


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns what was asked for; lengths in rising order."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--width", type=int, default=256)
    p.add_argument("--vocab", type=int, default=4096)
    p.add_argument("--versions", default="4567")
    p.add_argument("--precision", choices=tuple(SAME_LOGITS), default="fp32")
    p.add_argument("--lengths", default="1000,20000,200000")
    p.add_argument("--piece_tokens", type=int, default=PIECE_TOKENS)
    p.add_argument("--steps", type=int, default=64)
    p.add_argument("--rounds", type=int, default=9)
    options = p.parse_args(argv)
    options.lengths = sorted(map(int, options.lengths.split(",")))
    return options


def main(argv: list[str] | None = None) -> None:
    """Runs what the module's docstring describes."""
    options = parsed(argv)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads; L{options.layers} "
        f"D{options.width} V{options.vocab}, one prompt, {options.precision}"
    )
    print(
        f"{'version':<9}{'tokens':>9}{'peak MiB':>11}{'more MiB':>11}{'read tokens/s':>15}"
        f"{'then tokens/s':>15}{'of first':>10}"
    )
    for version in options.versions:
        report(version, options)


if __name__ == "__main__":
    main()
