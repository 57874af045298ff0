"""Makes one check, in this process or in a child that is ended when it takes too long.

The child prints a line of JSON for every answer. What libraries print themselves goes to stderr.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from rwkv_train.doctor.check_table import CHECKS, Check
from rwkv_train.doctor.child_command import child_command
from rwkv_train.doctor.findings import Answers, Finding, fault, in_one_line
from rwkv_train.training.environment import child_variables
from rwkv_train.training.launchers.children import EndedChild, die_with_parent

# For what a child has printed and nobody has read yet, once it has ended.
_LAST_WORDS_S = 2.0
_ERRORS_KEPT = 40

# Told what a check does next, as it does it.
Telling = Callable[[str], None]


def make_check(check: Check, folder: Path, watch: Telling) -> list[Finding]:
    """Returns all findings of a check; what it does itself wrong is one of them."""
    if check.limit_s is None:
        return _findings(check.make(folder))
    return _make_in_child(check, folder, check.limit_s, watch)


def _findings(answers: Answers) -> list[Finding]:
    found = []
    try:
        for said in answers:
            if isinstance(said, Finding):
                found.append(said)
    except Exception as error:
        found.append(broken_check(error))
    return found


def broken_check(error: Exception) -> Finding:
    """Returns the fault that a check met and did not expect."""
    told = in_one_line(f"{type(error).__name__}: {error}")
    return fault(
        f"the check could not be made: {told}",
        "rwkv-doctor --only requirements,numpy,torch,lightning; report it if they are sound",
    )


def _make_in_child(check: Check, folder: Path, limit_s: float, watch: Telling) -> list[Finding]:
    process = subprocess.Popen(
        child_command("rwkv_train.doctor.check_runner", check.name, folder, os.getpid()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_variables({}),
        # Its own group: whatever it has started is ended with it.
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None, "both are pipes"
    found: list[Finding] = []
    doing: list[str] = []
    errors: list[str] = []

    def take(line: str) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            # Printed before the child sent such words elsewhere, by what Python starts with.
            keep(line)
            return
        if isinstance(said, str):
            doing.append(said)
            watch(said)
        else:
            found.append(Finding(**said))

    def keep(line: str) -> None:
        errors.append(line.strip())
        del errors[:-_ERRORS_KEPT]

    readers = [_reader(process.stdout, take), _reader(process.stderr, keep)]
    try:
        status: int | None = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        # Also after Ctrl-C. Not waited for: where a driver or a file server hangs nothing ends it.
        _end_group(process)
    # Until the end of what was printed; a process that it has left behind may keep the pipe open.
    deadline = time.monotonic() + _LAST_WORDS_S
    for reader in readers:
        reader.join(max(0.0, deadline - time.monotonic()))
    if status != 0:
        found.append(_ended(status, limit_s, doing, errors))
    return found


def _ended(
    status: int | None, limit_s: float, doing: Sequence[str], errors: Sequence[str]
) -> Finding:
    """Returns the fault of a child that did not come to its end."""
    where = f" at: {doing[-1]}" if doing else ""
    if status is None:
        what, remedy = (
            f"did not end within {limit_s:.0f} s{where}",
            "try that alone; a file server, a driver or a package that hangs is restarted or "
            "installed anew",
        )
    else:
        what = EndedChild(0, status).describe().removesuffix(" before the others")
        what, remedy = f"{what}{where}", "install the package that crashes anew"
        if status == -signal.SIGKILL:
            remedy = "free memory: `dmesg | tail` tells whether the system has killed it"
    last = next((line for line in reversed(errors) if line), "")
    return fault(in_one_line(f"{what}{': ' if last else ''}{last}"), remedy)


def _reader(stream: IO[bytes], take: Callable[[str], None]) -> threading.Thread:
    def read() -> None:
        for line in stream:
            take(line.decode(errors="replace"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def main(argv: Sequence[str]) -> int:
    """Makes a check as the child; returns the exit status.

    argv: name of the check, the run's folder, process number of the parent.
    """
    name, folder, parent = argv
    check = next(check for check in CHECKS if check.name == name)
    die_with_parent(int(parent))
    results = os.fdopen(os.dup(1), "w", encoding="utf-8", closefd=False)
    os.dup2(2, 1)
    try:
        for said in check.make(Path(folder)):
            line = said if isinstance(said, str) else said.to_json()
            print(json.dumps(line), file=results, flush=True)
    except Exception as error:
        print(json.dumps(broken_check(error).to_json()), file=results, flush=True)
    return 0
