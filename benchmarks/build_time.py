"""How long it takes to build the native operators, and to load them once they are built.

    python -m benchmarks.build_time [--ops 4567s] [--device cpu|cuda] [--repeats 3]

Cold: a new process with an empty cache folder compiles and loads the library of an operator, s:
that of all operators besides the recurrences. Warm: another new process loads it from that folder.
The import of torch, which every program pays, is not counted.
Prints medians, and whether they are within the limits: 60 s on two cores, and 0.2 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COLD_LIMIT_S, WARM_LIMIT_S = 60.0, 0.2
OPS = {"4": "wkv4", "5": "wkv5", "6": "wkv6", "7": "wkv7", "s": "norm_shift"}

# Run in a process of its own: imports torch, then times from the first use to the registered op.
_LOAD = """
import sys, time
import torch
if sys.argv[2] == "cuda":
    torch.cuda.init()
began = time.perf_counter()
from rwkv_train.ops.native import build
reason = build.load(sys.argv[1], sys.argv[2])
print(time.perf_counter() - began)
sys.exit(reason)
"""


def main() -> int:
    """Prints a line per operator; 1 if one exceeds a limit, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.build_time", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ops", default="".join(OPS), help="versions, s: layers' operators")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="warm loads per operator")
    options = parser.parse_args()
    if not options.ops or set(options.ops) - set(OPS):
        parser.error(f"--ops {options.ops}: expected letters among {''.join(OPS)}, such as 67")
    print(f"{os.cpu_count()} cores; limits: cold {COLD_LIMIT_S:.0f} s, warm {WARM_LIMIT_S} s")
    print(f"{'op':<12}{'cold build, s':>15}{'warm load, s':>15}")
    slow = False
    for op in (OPS[letter] for letter in options.ops):
        with tempfile.TemporaryDirectory() as home:
            cold = seconds_to_load(op, options.device, Path(home))
            warm = statistics.median(
                seconds_to_load(op, options.device, Path(home)) for _ in range(options.repeats)
            )
        within = cold <= COLD_LIMIT_S and warm <= WARM_LIMIT_S
        slow = slow or not within
        verdict = "" if within else "   over the limit"
        print(f"{op:<12}{cold:>15.1f}{warm:>15.3f}{verdict}", flush=True)
    return 1 if slow else 0


def seconds_to_load(op: str, device: str, home: Path) -> float:
    """Seconds until the operator's library is loaded in a new process with this home folder."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, op, device],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip())
    return float(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
