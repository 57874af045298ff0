"""Memory that runs are predicted to take, and take.

    python -m benchmarks.peak_memory [--only WORD,WORD] [--accelerator cpu|gpu] [--list]

Every row is a run of train.py of two steps in processes of its own.  Predicted is what the run
itself writes to plan.json.  Allocated, on a CPU: every block that torch's allocator gives out and
takes back, from the first tensor to the end of the run, added up by address; it sees the tensors of
torch, of the project's kernels and of DeepSpeed alike.  Outside are the scratch memory of oneDNN
and of the kernels' threads, Python's objects and libraries: they show in the resident peak, which
is the system's figure (VmHWM) and stands next to the prediction with its slack.  On a GPU: torch's
own peaks, allocated and reserved.  Of several processes the largest counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BASE = (
    "--data_type dummy --max_steps 2 --num_workers 0 --plot 0 --epoch_save 0 "
    "--save_every_minutes 0 --skip_memory_check 1"
)
_SHAPE = "--n_layer 4 --n_embd 256 --ctx_len 1024 --micro_bsz 4 --vocab_size 8192"
_WIDE = "--n_layer 3 --n_embd 512 --ctx_len 512 --micro_bsz 4 --vocab_size 4096"
_LONG = "--n_layer 4 --n_embd 256 --ctx_len 2048 --micro_bsz 2 --vocab_size 4096"
_MANY_TOKENS = "--n_layer 4 --n_embd 256 --ctx_len 1024 --micro_bsz 2 --vocab_size 65536"
# Buckets smaller than the model, so that all of them is used.
_TWO = "--devices 2 --ds_bucket_mb 1"


class Measured(NamedTuple):
    """Bytes of the process that took most of each."""

    predicted: int
    allocated: int
    planned_resident: int
    resident: int


def configurations(accelerator: str) -> Iterator[tuple[str, str]]:
    """Yields the name and the flags of every row."""
    for version in "4567":
        yield f"{version} all fp32", _SHAPE
        yield f"{version} all bf16 grad_cp", f"{_MANY_TOKENS} --precision bf16 --grad_cp 1"
        yield f"{version} all fp32 chunk_len", f"{_LONG} --chunk_len 256"
        yield f"{version} states fp32", f"{_SHAPE} --train_type states"
        yield f"{version} lora bf16", f"{_WIDE} --train_type lora --precision bf16"
    if accelerator == "cpu":
        yield "7 all bf16 ddp", f"{_WIDE} --devices 2 --strategy ddp --precision bf16"
        yield (
            "6 all bf16 ddp grad_cp",
            f"{_WIDE} --devices 2 --strategy ddp --precision bf16 --grad_cp 1 "
            "--accumulate_grad_batches 2",
        )
        yield "7 all fp32 zero1", f"{_SHAPE} {_TWO} --strategy deepspeed_stage_1"
        yield "6 all bf16 zero2", f"{_WIDE} {_TWO} --strategy deepspeed_stage_2 --precision bf16"
        yield (
            "5 all fp32 zero3 chunk_len",
            f"{_LONG} {_TWO} --strategy deepspeed_stage_3 --chunk_len 512",
        )
        yield (
            "4 all bf16 zero3 grad_cp",
            (f"{_WIDE} {_TWO} --strategy deepspeed_stage_3 --precision bf16 --grad_cp 1"),
        )
        spread = f"{_LONG} --devices 2 --strategy ddp --context_parallel 2"
        yield "7 all fp32 context_parallel", spread
        yield "5 all fp32 context_parallel chunk_len", f"{spread} --chunk_len 256"


def measure(version: str, flags: str, accelerator: str, folder: Path) -> Measured:
    """Returns what one run was predicted to take and took; raises SystemExit when it fails."""
    given = f"{BASE} {flags} --rwkv_version {version} --accelerator {accelerator}".split()
    if "--train_type" in given:
        start = without(given, "--train_type", "--devices")
        _run([*start, "--train_stage", "1", "--proj_dir", str(folder / "base")], None)
        given += ["--load_model", str(folder / "base" / "rwkv-init.pth")]
    run = folder / "run"
    _run([*given, "--proj_dir", str(run)], folder / "peaks")
    plan = json.loads((run / "plan.json").read_text())
    peaks = [json.loads(file.read_text()) for file in folder.glob("peaks.*")]
    total, slack = plan["total"], plan["memory"]["slack"]
    return Measured(
        total - slack,
        max(peak["allocated"] for peak in peaks),
        total,
        max(peak["resident"] for peak in peaks),
    )


def without(words: list[str], *names: str) -> list[str]:
    """Returns the flags but those of these names, each of which has one value."""
    dropped = {i + step for i, word in enumerate(words) if word in names for step in (0, 1)}
    return [word for i, word in enumerate(words) if i not in dropped]


def _run(flags: Sequence[str], peaks: Path | None) -> None:
    worker = [
        sys.executable,
        "-m",
        "benchmarks.peak_memory",
        "--worker",
        str(peaks or "none"),
        *flags,
    ]
    ended = subprocess.run(worker, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise SystemExit(f"{' '.join(flags)}\n{ended.stderr[-2000:]}")


def work(peaks: str, flags: list[str]) -> int:
    """Returns the exit status of a run of train.py, whose peaks it writes to PEAKS.<process>."""
    import os

    from rwkv_train.training.__main__ import main
    from rwkv_train.training.start.memory_limits import peak_resident_bytes

    if peaks == "none":
        return main(flags)
    with AllocatedPeak() as counted:
        status = main(flags)
        resident = peak_resident_bytes()
    found = {"allocated": counted.bytes, "resident": resident}
    Path(f"{peaks}.{os.getpid()}").write_text(json.dumps(found))
    return status


class AllocatedPeak:
    """The most bytes that torch has given out at a time while the context is open.

    bytes: afterwards.  On a GPU those of the device.
    """

    def __init__(self) -> None:
        self.bytes = 0

    def __enter__(self) -> AllocatedPeak:
        from torch.autograd.profiler import profile

        self._profile = profile(profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        import torch

        self._profile.__exit__(*error)
        if torch.cuda.is_initialized():
            self.bytes = torch.cuda.max_memory_allocated()
            return
        results = self._profile.kineto_results
        self.bytes = peak_of(_allocations(results.experimental_event_tree()))


def peak_of(events: Iterator[tuple[int, int, int]]) -> int:
    """Returns the largest sum of live blocks; events: time, address, bytes given out or, < 0, back.

    By address: a block that another thread has taken back is not seen to end, but its address is
    given out again.
    """
    live: dict[int, int] = {}
    held = peak = 0
    for _, address, size in sorted(events):
        held -= live.pop(address, 0)
        if size > 0:
            live[address] = size
            held += size
            peak = max(peak, held)
    return peak


def _allocations(events: Any) -> Iterator[tuple[int, int, int]]:
    for event in events:
        if event.tag.name == "Allocation":
            found = event.extra_fields
            yield event.start_time_ns, found.ptr, found.alloc_size
        yield from _allocations(event.children)


def report(rows: list[tuple[str, str]], accelerator: str) -> None:
    """Prints the table, a row as soon as it is measured."""
    print("| run | predicted MB | allocated MB | ratio | with slack MB | resident MB | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, flags in rows:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name[0], flags, accelerator, Path(folder))
        first = found.predicted / found.allocated
        second = found.planned_resident / max(1, found.resident)
        print(
            f"| {name} | {found.predicted / 1e6:.0f} | {found.allocated / 1e6:.0f} | {first:.3f} | "
            f"{found.planned_resident / 1e6:.0f} | {found.resident / 1e6:.0f} | {second:.2f} |",
            flush=True,
        )


def main() -> int:
    """Prints predicted and measured memory of all rows; returns the exit status."""
    if sys.argv[1:2] == ["--worker"]:
        return work(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="rows whose name has one of these words, by comma")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--list", action="store_true", help="print the rows' flags and leave")
    options = parser.parse_args()
    words = options.only.split(",") if options.only else [""]
    rows = [
        (name, flags)
        for name, flags in configurations(options.accelerator)
        if any(word in name for word in words)
    ]
    if options.list:
        for name, flags in rows:
            print(f"{name}: {flags}")
        return 0
    report(rows, options.accelerator)
    return 0


if __name__ == "__main__":
    sys.exit(main())
