"""Runs train.py and strikes it at a chosen moment, always the same one.

    python -m tests.training.kill_at MOMENT SIGNAL FLAGS...

MOMENT: step:N, after the loss of the N-th step is known; saving:N, the same while states take two
seconds longer to be written, which is said if one is; copied:N:FOLDER, after the N-th step, once a
state lies in FOLDER; rename:NAME, when NAME is written next to and about to be renamed. SIGNAL:
KILL, TERM or INT for the process group, a second one after "x2"; with "@R" only for the process of
local rank R. RAISE instead of a signal raises an exception.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import train
from rwkv_train.training.progress import Progress


def striking(what: str) -> Callable[[], None]:
    """A function that sends the signal; nothing on the ranks that are not meant."""
    what, _, rank = what.partition("@")
    if rank and os.environ.get("LOCAL_RANK", "0") != rank:
        return lambda: None
    if what == "RAISE":
        return fail
    name, _, times = what.partition("x")
    number = signal.Signals[f"SIG{name}"]
    if not rank:
        return lambda: [os.killpg(0, number) for _ in range(int(times or 1))]
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    """Raises what nobody expects."""
    raise ZeroDivisionError("by the test")


def strike_at_step(step: int, strike: Callable[[], None]) -> None:
    """Strikes once the counters stand at `step`."""
    add_loss = Progress.add_loss

    def struck(progress: Progress, loss: float) -> None:
        add_loss(progress, loss)
        if progress.step == step:
            strike()

    Progress.add_loss = struck


def strike_while_saving(step: int, folder: Path, strike: Callable[[], None]) -> None:
    """Strikes at `step`, which follows one that is saved."""
    replace = Path.replace

    def struck(path: Path, target: Path) -> Path:
        if Path(target).suffix == ".state":
            time.sleep(2)
        return replace(path, target)

    def tell_and_strike() -> None:
        while not list(folder.glob("*.state.*.partial")) and not list(folder.glob("*.state")):
            time.sleep(0.01)
        print(f"states at the strike: {[path.name for path in folder.glob('*.state')]}", flush=True)
        strike()

    Path.replace = struck
    strike_at_step(step, tell_and_strike)


def strike_when_copied(step: int, folder: Path, strike: Callable[[], None]) -> None:
    """Strikes after `step`, which follows one that is saved, once its copy is in `folder`."""

    def wait_and_strike() -> None:
        while not list(folder.glob("*.state")):
            time.sleep(0.01)
        strike()

    strike_at_step(step, wait_and_strike)


def strike_at_rename(name: str, strike: Callable[[], None]) -> None:
    """Strikes when a file is about to become `name`."""
    replace = Path.replace

    def struck(path: Path, target: Path) -> Path:
        if Path(target).name == name:
            strike()
        return replace(path, target)

    Path.replace = struck


def main(moment: str, what: str, argv: list[str]) -> int:
    """Exit status of train.py, if it lives to give one."""
    kind, _, detail = moment.partition(":")
    if kind == "step":
        strike_at_step(int(detail), striking(what))
    elif kind == "saving":
        folder = Path(argv[argv.index("--proj_dir") + 1])
        strike_while_saving(int(detail), folder, striking(what))
    elif kind == "copied":
        number, _, place = detail.partition(":")
        strike_when_copied(int(number), Path(place), striking(what))
    else:
        strike_at_rename(detail, striking(what))
    return train.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
