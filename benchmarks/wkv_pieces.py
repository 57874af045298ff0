"""Cost of what context parallelism adds to a WKV operator: its pieces beside the operator itself.

    python -m benchmarks.wkv_pieces [--ops 4567] [--batch 1 --time 2048 --heads 8 --size 64]
                                    [--dtype fp32|bf16|fp16] [--device cpu|cuda]
                                    [--backends native,chunked] [--repeats 9] [--threads 1]

Medians over alternating repetitions, on a CPU of the time that processors spend on it; every ratio
is within one run. "piece": transition and contribution, "gradient": that of the initial state
through the outputs; a rank computes both once a layer. "of forward" and "of both" are the piece in
forward passes of the operator, and piece and gradient in its forward and backward passes. A backend
whose pieces disagree with an fp64 computation of the same rounded inputs gets no speed, and the
exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.wkv import device_name
from benchmarks.wkv_cases import (
    Contender,
    Inputs,
    Shape,
    contenders,
    make_inputs,
    outputs_and_gradients,
    relative_error,
)
from benchmarks.wkv_flags import DTYPES, case_parser
from benchmarks.wkv_timing import alternate
from rwkv_train.ops import pieces
from rwkv_train.ops.pieces.message import pack_piece, pack_state

# The piece's arguments and those of the gradient behind gy, in the operators' letters.
ARGUMENTS = {
    "wkv4": ("wkv", "wukv"),
    "wkv5": ("kvw", "rw"),
    "wkv6": ("kvw", "rw"),
    "wkv7": ("wkvab", "rwab"),
}
LIMIT = 1e-4
# Of a CPU the time that others use is not counted.
CLOCKS = {"cpu": time.process_time}


def main() -> int:
    """Prints a table; returns 1 if a backend failed its parity check, else 0."""
    options = parse()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dtype, device = DTYPES[options.dtype], torch.device(options.device)
    shape = Shape(options.batch, options.time, options.heads, options.size)
    print(
        f"{device_name(device)}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"(B, T, H, N) = {tuple(shape)}, {options.dtype}; milliseconds"
    )
    print("| operator | backend | forward | both | piece | gradient | of forward | of both |")
    print("|---|---|---|---|---|---|---|---|")
    faults = []
    for op in (f"wkv{version}" for version in options.ops):
        inputs = make_inputs(op, shape, dtype, device)
        for contender in contenders(op, device):
            if contender.name in options.backends.split(","):
                faults += compare(op, contender, inputs, options.repeats)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def compare(op: str, contender: Contender, inputs: Inputs, repeats: int) -> list[str]:
    """Prints a line of the table; returns the faults in its place, and prints none."""
    refusal = contender.refusal(op, inputs)
    if refusal is not None:
        print(f"| {op} | {contender.name} | {refusal} | | | | | |")
        return []
    fault = fault_of(op, contender.name, inputs)
    if fault is not None:
        return [f"{op} {contender.name}: {fault}"]
    piece, gradient = piece_calls(op, contender.name, inputs)

    def forward() -> None:
        with torch.no_grad():
            contender.run(inputs.leaves)

    works = {"forward": forward, "piece": piece, "gradient": gradient}
    works["both"] = lambda: outputs_and_gradients(contender, inputs)
    device = inputs.gy.device
    taken = alternate(works, repeats, device, CLOCKS.get(device.type, time.perf_counter))
    times = " | ".join(f"{taken[n] * 1e3:.1f}" for n in ("forward", "both", "piece", "gradient"))
    of_forward = ratio(taken["piece"], taken["forward"])
    of_both = ratio(taken["piece"] + taken["gradient"], taken["both"])
    print(f"| {op} | {contender.name} | {times} | {of_forward} | {of_both} |", flush=True)
    return []


def ratio(seconds: float, whole: float) -> str:
    """Returns a quotient for the table; of a call that is shorter than the clock's tick, a dash."""
    return f"{seconds / whole:.2f}" if whole > 0 else "-"


def piece_calls(
    op: str, backend: str, inputs: Inputs
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Returns the calls for the piece and for the gradient of the state before it."""
    leaves = {name: x.detach() for name, x in inputs.leaves.items()}
    given, read = ([leaves[name] for name in names] for names in ARGUMENTS[op])
    if op == "wkv4":
        read.append(None)  # type: ignore[arg-type]  # from the empty state
    form, gradient = getattr(pieces, f"{op}_piece"), getattr(pieces, f"{op}_state_gradient")
    return (
        lambda: form(*given, backend=backend),
        lambda: gradient(inputs.gy, *read, backend=backend),
    )


def fault_of(op: str, backend: str, inputs: Inputs) -> str | None:
    """Returns None when piece and gradient agree with those in fp64, else what went wrong."""
    exact = Inputs({n: x.detach().double() for n, x in inputs.leaves.items()}, inputs.gy.double())
    for name, call, right in zip(
        ("the piece", "the gradient"),
        piece_calls(op, backend, inputs),
        piece_calls(op, "chunked", exact),
    ):
        found, expected = (
            pack_state(x) if isinstance(x, torch.Tensor | tuple) else pack_piece(x)
            for x in (call(), right())
        )
        error = relative_error(found.double(), expected)
        if not error <= LIMIT:
            return f"relative error {error:.1e} of {name} exceeds {LIMIT:.0e}"
    return None


def parse() -> argparse.Namespace:
    """Returns the values of the command line."""
    parser = case_parser("wkv_pieces", __doc__, Shape(1, 2048, 8, 64))
    parser.add_argument("--backends", default="native,chunked", help="names, comma-separated")
    options = parser.parse_args()
    if not options.ops or set(options.ops) - set("4567"):
        parser.error(f"--ops {options.ops}: expected versions among 4567, such as 67")
    return options


if __name__ == "__main__":
    sys.exit(main())
