"""Speed of the WKV operators: every backend, forward and forward + backward, on one shape.

    python -m benchmarks.wkv [--ops 4567] [--batch 4 --time 512 --heads 12 --size 64] [--plot FILE]
                             [--dtype fp32|bf16|fp16] [--device cpu|cuda] [--backends a,b]

Beside them, when it is installed and a GPU is there, the operator of flash-linear-attention. Prints
medians over alternating repetitions; every ratio is within one run. Floors of the same run: the
bytes that must be moved against the bandwidth of a copy, and the operations of the token loop
against the rate of a matrix product. A backend whose outputs or gradients disagree with the fp64
reference gets no speed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

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

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# The token loop is a thousand times slower; beyond so many tokens it is left out unless asked for.
LOOP_TOKENS = 4096
COPY_BYTES = 256 * 2**20
MATMUL_SIZE = 2048


def main() -> int:
    """Prints one table per operator; 1 if a backend failed its parity check, else 0."""
    options = parse()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    shape = Shape(options.batch, options.time, options.heads, options.size)
    dtype, device = DTYPES[options.dtype], torch.device(options.device)
    copy, product = copy_rate(device), product_rate(device, dtype)
    print(
        f"{device_name(device)}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{options.dtype}; copy {copy / 1e9:.1f} GB/s (read + write), "
        f"matrix product {product / 1e9:.0f} GFLOP/s"
    )
    faults, rows = [], []
    for op in (f"wkv{version}" for version in options.ops):
        inputs = make_inputs(op, shape, dtype, device)
        running = []
        for contender in chosen(op, options, shape, device):
            fault = parity_fault(op, contender, inputs, dtype)
            if fault is None:
                running.append(contender)
            else:
                faults.append(fault)
                print(f"{op} {contender.name}: NO SPEED, {fault}")
        rows += table(op, shape, inputs, running, options.repeats, copy, product)
    if options.plot is not None:
        plot(rows, shape, options.plot)
    return 1 if faults else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wkv", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ops", default="4567", help="versions, such as 67")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--time", type=int, default=512)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--size", type=int, default=64, help="channels per head")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backends", help="names, comma-separated; default: all that can serve")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--plot", type=Path, help="write a bar chart of tokens/s to this file")
    return parser.parse_args()


def chosen(
    op: str, options: argparse.Namespace, shape: Shape, device: torch.device
) -> list[Contender]:
    """The contenders asked for, or all that are not hopeless at this length."""
    wanted = None if options.backends is None else options.backends.split(",")
    found = contenders(op, device)
    if wanted is not None:
        return [contender for contender in found if contender.name in wanted]
    loop = shape.batch * shape.time <= LOOP_TOKENS
    return [contender for contender in found if loop or contender.name != "reference"]


def table(
    op: str, shape: Shape, inputs: Inputs, running: list[Contender], repeats: int,
    copy: float, product: float,
) -> list[tuple[str, str, str, float]]:
    """Prints the rows of one operator; returns (op, backend, direction, tokens/s) for the plot."""
    case = CASES[op]
    print(f"\n{op}, (B, T, H, N) = {tuple(shape)}")
    print(
        f"{'backend':<12}{'direction':<20}{'ms':>9}{'tokens/s':>12}{'GB/s':>8}{'of copy':>9}"
        f"{'GFLOP/s':>9}{'of product':>11}{'kept MB':>9}{'x fastest':>11}"
    )
    kept = {contender.name: saved_bytes(contender, inputs) / 1e6 for contender in running}
    rows = []
    for direction in ("forward", "forward + backward"):
        both = direction != "forward"
        seconds = alternate(
            {c.name: work(c, inputs, both) for c in running}, repeats, inputs.gy.device
        )
        for name, duration in seconds.items():
            moved = case.bytes_moved(shape, inputs.gy.element_size(), both)
            operations = case.operations(shape, both)
            rate = shape.batch * shape.time / duration
            rows.append((op, name, direction, rate))
            print(
                f"{name:<12}{direction:<20}{duration * 1e3:>9.2f}{rate:>12.0f}"
                f"{moved / duration / 1e9:>8.1f}{moved / duration / copy:>9.1%}"
                f"{operations / duration / 1e9:>9.1f}{operations / duration / product:>11.1%}"
                f"{kept[name]:>9.1f}{duration / min(seconds.values()):>10.1f}x"
            )
    return rows


def work(contender: Contender, inputs: Inputs, backward: bool) -> Callable[[], object]:
    """One repetition of what is timed."""
    if backward:
        return lambda: outputs_and_gradients(contender, inputs)

    def forward() -> object:
        with torch.no_grad():
            return contender.run(inputs.leaves)

    return forward


def alternate(
    works: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each work; all take turns, so that a disturbance meets them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for attempt in range(repeats + 1):
        for name, run in works.items():
            wait(device)
            began = time.perf_counter()
            run()
            wait(device)
            # the first turn warms up
            if attempt:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def wait(device: torch.device) -> None:
    """Returns when the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a copy far larger than the caches."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    seconds = alternate({"copy": lambda: target.copy_(source)}, 5, device)["copy"]
    return 2 * COPY_BYTES / seconds


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device).to(dtype)
    seconds = alternate({"product": lambda: a @ a}, 5, device)["product"]
    return 2 * MATMUL_SIZE**3 / seconds


def device_name(device: torch.device) -> str:
    """What it runs on, for the head of the report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return str(device)


def plot(rows: list[tuple[str, str, str, float]], shape: Shape, file: Path) -> None:
    """Bars of tokens/s, one group per operator and direction."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = sorted({(op, direction) for op, _, direction, _ in rows})
    names = sorted({name for _, name, _, _ in rows})
    figure, axes = pyplot.subplots(figsize=(10, 5))
    for position, name in enumerate(names):
        heights = {(op, direction): rate for op, n, direction, rate in rows if n == name}
        places = [index + position / (len(names) + 1) for index in range(len(groups))]
        axes.bar(
            places, [heights.get(group, 0) for group in groups], 1 / (len(names) + 1), label=name
        )
    axes.set_xticks(range(len(groups)), [f"{op}\n{direction}" for op, direction in groups])
    axes.set_yscale("log")
    axes.set_ylabel("tokens/s")
    axes.set_title(f"WKV operators at (B, T, H, N) = {tuple(shape)}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
