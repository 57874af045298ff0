"""Kills one training run again and again, resumes it each time, and compares how it ends.

    python -m benchmarks.kill_test [--kills 40] [--steps 300] [--seed 0] [--folder DIR]

Every attempt is a process of its own, struck at a random moment: kill -9 after a random step, at a
random time from its start, or while a file is being written; SIGTERM; a disk that is full (a small
tmpfs where mounting is allowed) or a limit on the size of files. After every attempt each training
state must be readable and verified, and each .pth too. In the end the weights must be those of a
run that nobody disturbed, bit for bit, and no step may be missing from its log or stand there
twice. Exit status 0: all of that held.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

import train
from rwkv_train.checkpoint.names import is_state
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.checkpoint.weights import load_weights
from rwkv_train.training import run
from rwkv_train.training.reporting.metrics_file import read_metrics

KINDS = ("kill at a step", "kill at a time", "kill in a save", "SIGTERM", "disk full", "file limit")
# Longest that one attempt may take before the test itself is called broken.
PATIENCE_SECONDS = 300.0
assert run, "imported here, so that the processes that are forked need not"


def fork(work: Callable[[], int], log: Path) -> int:
    """Runs `work` in a process group of its own, its output in `log`; returns the process id."""
    process = os.fork()
    if process:
        # Here too: it may be struck before it has come to its own line.
        with suppress(OSError):
            os.setpgid(process, process)
        return process
    status = 70
    try:
        os.setpgid(0, 0)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = work()
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def make_data(folder: Path) -> Path:
    """Returns the prefix of a byte-level binidx pair of some 20 thousand tokens."""
    words = ["the", "state", "of", "a", "network", "that", "reads", "one", "token", "after"]
    lines = [
        json.dumps({"text": " ".join(words[(i * k + k * k) % 10] for k in range(1, 20))})
        for i in range(200)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    subprocess.run(
        [
            sys.executable,
            "make_data.py",
            str(folder / "text.jsonl"),
            "1",
            "32",
            "--output",
            str(folder / "text"),
            "--tokenizer",
            "bytes",
            "--seed",
            "3",
        ],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
    )
    return folder / "text"


def command(data: Path, proj_dir: Path, steps: int) -> list[str]:
    """Returns the command line of a small run with dropout, saved every 5 steps."""
    flags = {
        "proj_dir": proj_dir,
        "data_file": data,
        "rwkv_version": 6,
        "n_layer": 2,
        "n_embd": 32,
        "head_size": 32,
        "ctx_len": 32,
        "micro_bsz": 4,
        "exit_tokens": steps * 128,
        "epoch_steps": 20,
        "epoch_save": 1,
        "save_every_steps": 5,
        "keep_last": 3,
        # However long the run is: its disk is small.
        "keep_last_weights": 3,
        "save_retry_seconds": 0.05,
        "lr_init": "1e-3",
        "lr_final": "1e-4",
        "warmup_steps": 3,
        "dropout": 0.1,
        "weight_decay": 0.1,
        "accelerator": "cpu",
        "devices": 1,
        "precision": "fp32",
        "num_workers": 0,
        "plot": 0,
        "wkv_backend": "chunked",
    }
    return [word for key, value in flags.items() for word in (f"--{key}", str(value))]


class Disk:
    """Where the run is; `fill` takes all room that is left, `free` gives it back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True
        )
        self.is_small = mounted.returncode == 0

    def fill(self) -> None:
        """Fills the disk: nothing can be written afterwards."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    continue

    def free(self) -> None:
        """Makes room again."""
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it."""
        if self.is_small:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Attempts:
    """The attempts at one run, each struck in its own way."""

    def __init__(self, flags: list[str], disk: Disk, log: Path, rng: random.Random) -> None:
        self._flags = flags
        self._disk = disk
        self._run = disk.folder / "run"
        self._log = log
        self._rng = rng

    def steps_logged(self) -> int:
        """Returns the steps in metrics.jsonl."""
        return sum("loss" in record for record in read_metrics(self._run))

    def log_identity(self) -> int | None:
        """Changes when a run that goes on has dropped the steps it will do again from its log."""
        path = self._run / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None

    def newest_state(self) -> int:
        """Returns the steps of the newest state; raises when a state or weights are damaged."""
        steps = [0]
        for path in self._run.glob("rwkv-*"):
            if is_state(path.name):
                steps.append(load_state(path)["step"])
            elif path.suffix == ".pth":
                load_weights(path)
        return max(steps)

    def once(self, kind: str, reach: int) -> str:
        """Makes an attempt, struck at most `reach` steps behind the newest state; tells its end."""
        target = self.newest_state() + self._rng.randint(1, reach)
        limit = self._rng.randint(1, 400) * 1024 if kind == "file limit" else None
        old_log = self.log_identity()
        process = fork(lambda: self._train(limit), self._log)
        ended = self._strike(process, kind, target, old_log)
        status = os.waitstatus_to_exitcode(ended) if ended is not None else self._wait(process)
        self._disk.free()
        return {0: "finished"}.get(status, f"status {status}")

    def _train(self, limit: int | None) -> int:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return train.main(self._flags)

    def _strike(self, process: int, kind: str, target: int, old_log: int | None) -> int | None:
        """Waits for the moment; the wait status if the process ended before it came."""
        began, delay = time.monotonic(), self._rng.uniform(0, 1.5)
        while True:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return status
            assert time.monotonic() - began < PATIENCE_SECONDS, f"{kind}: the moment never came"
            if kind == "kill at a time":
                due = time.monotonic() - began >= delay
            elif kind == "file limit":
                due = False
            else:
                due = self.log_identity() != old_log and self.steps_logged() >= target
                if kind == "kill in a save":
                    due = due and any(self._run.glob("*.partial"))
            if due:
                break
            time.sleep(0.0005)
        if kind == "disk full":
            self._disk.fill()
        else:
            os.killpg(process, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
        return None

    def _wait(self, process: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def undisturbed(flags: list[str], log: Path) -> None:
    """Makes the run that nobody disturbs."""
    process = fork(lambda: train.main(flags), log)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status == 0, f"the undisturbed run ended with status {status}; see {log}"


def faults_of(run: Path, whole: Path, steps: int) -> list[str]:
    """Returns how the resumed run differs from the undisturbed one."""
    faults = []
    found, expected = load_weights(run / "rwkv-final.pth"), load_weights(whole / "rwkv-final.pth")
    different = [key for key in expected if not torch.equal(found[key], expected[key])]
    if different:
        faults.append(f"{len(different)} of {len(expected)} tensors differ")
    logged = [record["step"] for record in read_metrics(run) if "loss" in record]
    if logged != list(range(steps)):
        faults.append(f"metrics.jsonl has {len(logged)} steps, not each of {steps} once in order")
    losses = [record.get("loss") for record in read_metrics(run)]
    if losses != [record.get("loss") for record in read_metrics(whole)]:
        faults.append("the losses differ")
    return faults


def main(argv: list[str]) -> int:
    """Returns 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty one; default: a temporary one")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="kill_test-", dir=options.folder))
    # Removed only after a success: the log that a failure names must be there to be read.
    status = _test(folder, options.kills, options.steps, random.Random(options.seed))
    if status == 0:
        shutil.rmtree(folder)
    return status


def _test(folder: Path, kills: int, steps: int, rng: random.Random) -> int:
    data, log = make_data(folder), folder / "log"
    disk = Disk(folder / "disk")
    try:
        undisturbed(command(data, folder / "whole", steps), log)
        attempts = Attempts(command(data, disk.folder / "run", steps), disk, log, rng)
        kinds = [kind for kind in KINDS if disk.is_small or kind != "disk full"]
        order = (kinds * (kills // len(kinds) + 1))[:kills]
        rng.shuffle(order)
        # Each attempt gets a little further; together they stay short of the end.
        reach = max(2, 2 * steps // (kills + 1) - 1)
        endings: Counter[str] = Counter()
        for number, kind in enumerate(order, 1):
            ending = attempts.once(kind, reach)
            endings[f"{kind}: {ending}"] += 1
            print(
                f"{number:3} {kind:15} {ending:10} newest state: step {attempts.newest_state()}",
                flush=True,
            )
        undisturbed(command(data, disk.folder / "run", steps), log)
        faults = faults_of(disk.folder / "run", folder / "whole", steps)
        for ending, count in sorted(endings.items()):
            print(f"{count:4} x {ending}")
        if not disk.is_small:
            print("no tmpfs could be mounted: a full disk was not tried, only the file limit")
        early = sum(count for ending, count in endings.items() if "finished" in ending)
        if early:
            faults.append(f"{early} attempts finished before they were struck")
        print(
            f"{kills} interruptions of {steps} steps: "
            + (
                "; ".join(faults)
                or "final weights bitwise equal, no state or weights ever unreadable"
            )
        )
        if faults:
            print(log.read_text(encoding="utf-8", errors="replace")[-3000:])
            print(f"the whole log: {log}")
        return 1 if faults else 0
    finally:
        disk.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
