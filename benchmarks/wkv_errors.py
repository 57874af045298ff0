"""Accuracy of the WKV operators: relative RMS errors of a backend against the fp64 reference.

    python -m benchmarks.wkv_errors [--ops 4567] [--backend native] [--time 512 --heads 2 --size 64]

Prints one line per operator, float type and kind of decay. The reference gets the same inputs,
rounded to the same type; "stored" is the error of the reference's own result rounded to that type,
which no backend can beat.
"""

from __future__ import annotations

import argparse

import torch

from tests.helpers import relative_rms
from tests.ops.native_cases import WIDE, Case, make_case, run, sums

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What is added to w: for wkv4 to 6 a log rate, for wkv7 a logit.
DECAYS = {"slow": -4.0, "usual": 0.0, "fast": 2.5}


def main() -> None:
    """Prints the table in markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wkv_errors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ops", default="4567", help="versions, such as 67")
    parser.add_argument("--backend", default="native")
    parser.add_argument("--time", type=int, default=512)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    titles = ("op", "type", "decay", "y", "final state", "gradients of r to b", "w", "u", "state")
    print(f"| {' | '.join(titles)} |")
    print("|---" * len(titles) + "|")
    for op in (f"wkv{version}" for version in options.ops):
        for dtype_name, dtype in DTYPES.items():
            for decay, shift in DECAYS.items():
                case = make_case(op, 1, options.time, options.heads, options.size)
                case = case.with_inputs(w=case.inputs["w"] + shift)
                cells = " | ".join(errors(case, options.backend, dtype))
                print(f"| {op} | {dtype_name} | {decay} | {cells} |")


def errors(case: Case, backend: str, dtype: torch.dtype) -> list[str]:
    """Returns a table's cells: the largest error of each group; in 16 bit that of storing too."""
    wide = torch.float32
    rounded = {
        name: x.to(wide if name in WIDE else dtype).double() for name, x in case.inputs.items()
    }
    case = Case(case.op, rounded, case.gy.to(dtype).double(), case.gstate, None, case.state_names)
    actual, expected = sums(run(case, backend, dtype)), sums(run(case, "reference"))
    groups: dict[str, list[tuple[float, float]]] = {}
    for name, value in actual.items():
        exact = expected[name]
        stored = relative_rms(exact.to(value.dtype), exact)
        groups.setdefault(group_of(name), []).append((relative_rms(value, exact), stored))
    columns = ("y", "final state", "sequences", "w", "u", "state")
    return [cell(groups[name], dtype) if name in groups else "–" for name in columns]


def group_of(name: str) -> str:
    """Returns the table's column of a result."""
    if name.startswith("final"):
        return "final state"
    if name in ("y", "gw", "gu"):
        return name.removeprefix("g")
    return "sequences" if len(name) == 2 and name[1] in "rkvab" else "state"


def cell(pairs: list[tuple[float, float]], dtype: torch.dtype) -> str:
    """Returns the largest error; in half precision next to that of storing the exact result."""
    error, stored = max(pairs)
    half = dtype == torch.bfloat16 and stored > 1e-4
    return f"{error:.1e}" + (f" (stored {stored:.1e})" if half else "")


if __name__ == "__main__":
    main()
