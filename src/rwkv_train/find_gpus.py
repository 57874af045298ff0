"""Tells which GPUs torch can use and, where a card is there and torch cannot, why and what to do.

`python -m rwkv_train.find_gpus` prints what a script needs: "gpu bf16", "gpu fp16"
or "cpu"; with a card that cannot be used one line on stderr and status 2. torch is imported where
it is asked: the driver answers also where it cannot be imported.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rwkv_train.processors import visible_gpus

# A driver that hangs would otherwise hang every start; a sound one answers within a second or two.
TIMEOUT_S = 15.0
# Compute capability of the first cards that compute in bf16.
BF16_CAPABILITY = (8, 0)
# Oldest branch of the driver that runs programs of a version of CUDA (NVIDIA's release notes).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# A line of its answer: a name and a version, or a word in brackets for one that is not known.
_CARD = re.compile(r"\s*(.*\w.*),\s*(\d+(?:\.\d+)+|\[[\w/ ]+\])\s*")
# What the kernel module tells, also where nvidia-smi does not answer.
KERNEL_MODULE = Path("/proc/driver/nvidia")


@dataclass(frozen=True)
class FoundGpus:
    """The cards of this machine.

    has_bf16: whether all that torch can use compute in bf16; oldest: name of the oldest of them.
    fault: why a card that is there cannot be used, in one line with the remedy.
    reason: why there is none, where that is known.
    """

    count: int = 0
    has_bf16: bool = False
    oldest: str | None = None
    fault: str | None = None
    reason: str | None = None


class Driver(NamedTuple):
    """The answer of the driver: its cards' names and its version, or why it does not answer."""

    cards: list[str]
    version: str | None = None
    failure: str | None = None


def find_gpus() -> FoundGpus:
    """Returns the cards that torch can use; without one, what is known of the reason."""
    import torch

    # What torch warns of is told in one line with the remedy, or is no fault.
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        # Not the count: it asks the driver's library, which answers where CUDA does not start.
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        oldest = min(range(count), key=torch.cuda.get_device_capability)
        major, minor = torch.cuda.get_device_capability(oldest)
        name = f"{torch.cuda.get_device_name(oldest)} (compute capability {major}.{minor})"
        return FoundGpus(count, (major, minor) >= BF16_CAPABILITY, name)
    visible = visible_gpus()
    if visible == []:
        return FoundGpus(reason="CUDA_VISIBLE_DEVICES hides all cards")
    driver = ask_driver()
    if not driver.cards:
        return FoundGpus(reason=driver.failure)
    return FoundGpus(fault=_fault(driver, [str(warning.message) for warning in told]))


def ask_driver() -> Driver:
    """Returns what nvidia-smi tells of the machine; no cards where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Driver([])
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        status, answer = answer_of(command)
    except subprocess.TimeoutExpired:
        return _ask_kernel(f"nvidia-smi does not answer within {TIMEOUT_S:.0f} s")
    except OSError as error:
        return _ask_kernel(f"nvidia-smi does not start: {error.strerror}")
    rows = [row for row in map(_CARD.fullmatch, answer.splitlines()) if row]
    if status != 0 or not rows:
        said = "".join(c if c.isprintable() else " " for c in answer).split()
        return _ask_kernel(f"nvidia-smi: {' '.join(said)[:160] or 'no card'}")
    return Driver([row[1].strip() for row in rows], rows[0][2])


def answer_of(command: list[str]) -> tuple[int, str]:
    """Returns exit status and output of a program; raises TimeoutExpired when it hangs.

    Into a file: where the driver hangs nothing ends the program, and a pipe is waited for until
    all that hold it have ended.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            status = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        output.seek(0)
        return status, output.read().decode(errors="replace")


def main() -> int:
    """Prints what the module's docstring describes; returns the exit status."""
    found = find_gpus()
    if found.fault is not None:
        print(f"error: {found.fault}", file=sys.stderr)
        return 2
    print(("gpu bf16" if found.has_bf16 else "gpu fp16") if found.count else "cpu")
    return 0


def _ask_kernel(failure: str) -> Driver:
    """Returns the cards that the kernel's module knows, where nvidia-smi has failed so."""
    cards = KERNEL_MODULE / "gpus"
    found = sorted(card.name for card in cards.iterdir()) if cards.is_dir() else []
    return Driver([f"the card at {card}" for card in found], failure=failure)


def _fault(driver: Driver, warned: list[str]) -> str:
    """Returns why torch cannot use a card that is there, and what to do."""
    import torch

    card = driver.cards[0]
    with_driver = f" (driver {driver.version})" if driver.version else ""
    needed = torch.version.cuda
    if driver.failure is not None:
        return f"{card} cannot be used: {driver.failure}; restart the machine or mend its driver"
    if needed is None:
        return (
            f"{card} is there{with_driver}, but this torch ({torch.__version__}) was built for "
            "CPUs; install a CUDA build of torch"
        )
    oldest = OLDEST_DRIVER.get(int(needed.partition(".")[0]))
    branch = (driver.version or "").partition(".")[0]
    if oldest is not None and branch.isdigit() and int(branch) < oldest:
        return (
            f"the driver {driver.version} of {card} is too old for this torch, which was built "
            f"for CUDA {needed}: it needs {oldest} or newer; update the driver, or install a torch "
            "for an older CUDA"
        )
    visible = visible_gpus()
    if visible and visible[0].isdigit() and int(visible[0]) >= len(driver.cards):
        return (
            f"CUDA_VISIBLE_DEVICES={','.join(visible)} begins with a card that is not there, of "
            f"the {len(driver.cards)} in this machine; count from 0, or unset it"
        )
    said = f": {' '.join(warned[-1].split())[:200]}" if warned else ""
    return (
        f"{card} is there{with_driver}, but torch cannot use it{said}; see what "
        "`python -c 'import torch; torch.cuda.init()'` says"
    )


if __name__ == "__main__":
    sys.exit(main())
