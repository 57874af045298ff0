"""Speed of the WKV operators: every backend, forward and forward + backward, on one shape.

    python -m benchmarks.wkv [--ops 4567] [--batch 4 --time 512 --heads 12 --size 64] [--plot FILE]
                             [--dtype fp32|bf16|fp16] [--device cpu|cuda] [--backends a,b]
                             [--record src/rwkv_train/ops/backends/measurements.csv]
    python -m benchmarks.wkv --lengths 512,8192 --batch 64 --time 512 [--ops 6 --backends native]

Beside them, when it is installed and a GPU is there, the operator of flash-linear-attention. Prints
medians over alternating repetitions; every ratio is within one run. Floors of the same run: the
bytes that must be moved against the bandwidth of a copy, and the operations of the token loop
against the rate of a matrix product. "kept" is what stays in memory for the backward pass. A
backend whose outputs or gradients disagree with the fp64 reference gets no speed, and the exit
status is 1.

--record adds the medians to the table by which backend "auto" chooses. --lengths compares lengths
at an equal number of tokens, batch x time: what a token costs, relative to the first length.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.wkv_cases import (
    CASES,
    Contender,
    Inputs,
    Shape,
    contenders,
    make_inputs,
    outputs_and_gradients,
    parity_fault,
    saved_bytes,
)
from benchmarks.wkv_flags import DTYPES, case_parser, positive
from benchmarks.wkv_plot import plot
from benchmarks.wkv_timing import alternate, copy_rate, product_rate
from rwkv_train.ops import wkv7
from rwkv_train.ops.backends.measurements import BOTH, FORWARD, Measurement, card_of, record
from rwkv_train.processors import processor_name

# The token loop is a thousand times slower; beyond so many tokens it is left out unless asked for.
LOOP_TOKENS = 4096
# What `auto` chooses from by its speed: not the operators of others, and not the token loop, which
# keeps up at a few tokens and is hopeless at some more.
RECORDED = {backend.name for backend in wkv7.BACKENDS} - {"reference"}


class Row(NamedTuple):
    """A line of the table: the median seconds of a backend."""

    op: str
    backend: str
    direction: str
    shape: Shape
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.shape.batch * self.shape.time / self.seconds


def main() -> int:
    """Prints one table per operator; 1 if a backend failed its parity check, else 0."""
    options = parse()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dtype, device = DTYPES[options.dtype], torch.device(options.device)
    copy, product = copy_rate(device), product_rate(device, dtype)
    print(
        f"{device_name(device)}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{options.dtype}; copy {copy / 1e9:.1f} GB/s (read + write), "
        f"matrix product {product / 1e9:.0f} GFLOP/s"
    )
    if options.lengths is not None:
        served = [compare_lengths(f"wkv{v}", options) for v in options.ops]
        return 0 if all(served) else 1
    shape = shapes_of(options)[0]
    rows: list[Row] = []
    complete = True
    for op in (f"wkv{version}" for version in options.ops):
        inputs = make_inputs(op, shape, dtype, device)
        running, all_agree = agreeing(op, options, inputs)
        complete = complete and all_agree
        rows += table(op, shape, inputs, running, options.repeats, copy, product)
    if options.plot is not None:
        title = f"WKV operators, (B, T, H, N) = {tuple(shape)}, {options.dtype}"
        plot([(*row[:3], row.rate) for row in rows], title, device_name(device), options.plot)
    if options.record is not None:
        found = [as_measurement(row, options) for row in rows if row.backend in RECORDED]
        record(options.record, found)
        print(f"\n{len(found)} measurements recorded in {options.record}")
    return 0 if complete else 1


def parse() -> argparse.Namespace:
    """Returns the values of the command line."""
    parser = case_parser("wkv", __doc__, Shape(4, 512, 12, 64))
    parser.add_argument("--backends", help="names, comma-separated; default: all that can serve")
    parser.add_argument(
        "--lengths",
        type=lambda text: [positive(word) for word in text.split(",")],
        metavar="T,T",
        help="compare these, comma-separated, at equal batch x time",
    )
    parser.add_argument("--plot", type=Path, help="write a bar chart of tokens/s to this file")
    parser.add_argument("--record", type=Path, help="add the medians to this table of measurements")
    options = parser.parse_args()
    fault = fault_of(options)
    if fault is not None:
        parser.error(fault)
    return options


def fault_of(options: argparse.Namespace) -> str | None:
    """Returns what is wrong with the command line beyond single values, or None."""
    if not options.ops or sorted(set(options.ops) & set("4567")) != sorted(options.ops):
        return f"--ops {options.ops}: expected versions among 4567, such as 67"
    device = torch.device(options.device)
    known = {c.name: None for v in options.ops for c in contenders(f"wkv{v}", device)}
    unknown = [] if options.backends is None else set(options.backends.split(",")) - set(known)
    if unknown:
        return f"--backends {options.backends}: there are {', '.join(known)} on this device"
    if options.lengths is not None and (options.plot or options.record):
        return "--lengths prints a table of its own; leave --plot and --record out"
    for flag in ("plot", "record"):
        file = getattr(options, flag)
        if file is not None and not file.parent.is_dir():
            return f"--{flag} {file}: {file.parent} is no folder; make it first"
    for shape in shapes_of(options):
        if shape.batch * shape.time != options.batch * options.time:
            return (
                f"--lengths {shape.time} does not divide the {options.batch * options.time} tokens"
                f" of --batch {options.batch} --time {options.time}; choose a larger --batch"
            )
    return None


def shapes_of(options: argparse.Namespace) -> list[Shape]:
    """Returns the shape asked for, or that of every length at an equal number of tokens."""
    if options.lengths is None:
        return [Shape(options.batch, options.time, options.heads, options.size)]
    tokens = options.batch * options.time
    return [
        Shape(tokens // length, length, options.heads, options.size) for length in options.lengths
    ]


def agreeing(op: str, options: argparse.Namespace, inputs: Inputs) -> tuple[list[Contender], bool]:
    """Returns the contenders to time, and whether all that serve the call agree with the reference.

    Those asked for, or all that are not hopeless at this length. Says who is left out and why.
    """
    device, dtype = inputs.gy.device, inputs.gy.dtype
    wanted = None if options.backends is None else options.backends.split(",")
    tokens = inputs.gy.shape[0] * inputs.gy.shape[1]
    found, all_agree = [], True
    for contender in contenders(op, device):
        named = wanted is not None and contender.name in wanted
        hopeless = contender.name == "reference" and tokens > LOOP_TOKENS
        if not named and (wanted is not None or hopeless):
            continue
        refusal = contender.refusal(op, inputs)
        fault = refusal or parity_fault(op, contender, inputs, dtype)
        if fault is None:
            found.append(contender)
            continue
        print(f"{op} {contender.name}: NO SPEED, {fault}")
        all_agree = all_agree and refusal is not None and not named
    return found, all_agree


def table(
    op: str,
    shape: Shape,
    inputs: Inputs,
    running: list[Contender],
    repeats: int,
    copy: float,
    product: float,
) -> list[Row]:
    """Prints and returns the rows of one operator."""
    case = CASES[op]
    print(f"\n{op}, (B, T, H, N) = {tuple(shape)}")
    print(
        f"{'backend':<14}{'direction':<20}{'ms':>9}{'tokens/s':>12}{'GB/s':>8}{'of copy':>9}"
        f"{'GFLOP/s':>9}{'of product':>11}{'kept MB':>9}{'x fastest':>11}"
    )
    kept = {contender.name: saved_bytes(contender, inputs) / 1e6 for contender in running}
    rows = []
    for direction in (FORWARD, BOTH):
        both = direction == BOTH
        seconds = alternate(
            {c.name: work(c, inputs, both) for c in running}, repeats, inputs.gy.device
        )
        moved = case.bytes_moved(shape, inputs.gy.element_size(), both)
        operations = case.operations(shape, both)
        for name, duration in seconds.items():
            rows.append(Row(op, name, direction, shape, duration))
            print(
                f"{name:<14}{direction:<20}{duration * 1e3:>9.2f}{rows[-1].rate:>12.0f}"
                f"{moved / duration / 1e9:>8.1f}{moved / duration / copy:>9.1%}"
                f"{operations / duration / 1e9:>9.1f}{operations / duration / product:>11.1%}"
                f"{kept[name]:>9.1f}{duration / min(seconds.values()):>10.1f}x"
            )
    return rows


def compare_lengths(op: str, options: argparse.Namespace) -> bool:
    """Prints what a token costs at every length; False if a backend failed its parity check."""
    dtype, device = DTYPES[options.dtype], torch.device(options.device)
    shapes = shapes_of(options)
    problems = {shape: make_inputs(op, shape, dtype, device) for shape in shapes}
    found = {shape: agreeing(op, options, inputs) for shape, inputs in problems.items()}
    tokens = options.batch * options.time
    print(f"\n{op}, {tokens} tokens, {options.heads} x {options.size} channels; ns a token")
    print(f"{'backend':<14}{'direction':<20}" + "".join(f"{f'T {s.time}':>18}" for s in shapes))
    for contender in found[shapes[0]][0]:
        if any(contender.name not in {c.name for c in running} for running, _ in found.values()):
            continue
        for direction in (FORWARD, BOTH):
            works = {str(s): work(contender, problems[s], direction == BOTH) for s in shapes}
            seconds = list(alternate(works, options.repeats, device).values())
            print(
                f"{contender.name:<14}{direction:<20}"
                + "".join(
                    f"{duration / tokens * 1e9:>10.0f} ({duration / seconds[0]:.2f}x)"
                    for duration in seconds
                )
            )
    return all(all_agree for _, all_agree in found.values())


def as_measurement(row: Row, options: argparse.Namespace) -> Measurement:
    """Returns the row as the table of measurements keeps it."""
    device = torch.device(options.device)
    cuda = f"CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    batch, length, heads, size = row.shape
    if row.op == "wkv4":
        heads, size = heads * size, 1
    return Measurement(
        row.op,
        row.direction,
        card_of(device),
        device_name(device),
        str(DTYPES[options.dtype]).removeprefix("torch."),
        batch,
        length,
        heads,
        size,
        row.backend,
        round(row.seconds * 1e3, 4),
        f"torch {torch.__version__} {cuda or f'{torch.get_num_threads()} threads'}",
    )


def work(contender: Contender, inputs: Inputs, backward: bool) -> Callable[[], object]:
    """Runs one repetition of what is timed."""
    if backward:
        return lambda: outputs_and_gradients(contender, inputs)

    def forward() -> object:
        with torch.no_grad():
            return contender.run(inputs.leaves)

    return forward


def device_name(device: torch.device) -> str:
    """Returns the name of the device, for the head of the report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name() or str(device)


if __name__ == "__main__":
    sys.exit(main())
