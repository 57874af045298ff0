"""Kills a second copy before each of its file operations and says what was left; a program.

    python -m tests.checkpoint.copy_kill_points FOLDER KIND

KIND: whether states are files or folders. Over a place with two copies, of which the older is due
to go, a third state and a log are copied. For every file operation of that, a child process does it
and is killed right before the operation. Printed is JSON: for each point the states that verify
and those that do not, and what the next start makes of the place. It is a program of its own,
because it forks.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from rwkv_train.checkpoint.resume import StateFile, list_states, load_state, save_state
from rwkv_train.checkpoint.retention import KeepRule
from rwkv_train.checkpoint.state_place import StatePlace
from rwkv_train.errors import CheckpointError
from tests.checkpoint.fake_lock import Lock
from tests.checkpoint.small_states import save_small_folder, small_state
from tests.killed_work import kill_before, work_until

OPERATIONS = [
    (os, "fsync"),
    (Path, "open"),
    (Path, "replace"),
    (Path, "rename"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (os, "rmdir"),
]


def copy(folder: Path, state: StateFile) -> None:
    """Copies a state as a start of the run does."""
    place = StatePlace(folder / "place", KeepRule(last=2), None, "one", Lock())
    place.copy(state, [folder / "run" / "metrics.jsonl"], lambda: True)


def verified(place: Path) -> dict[str, bool]:
    """Every state under its name, and whether it is whole."""
    found = {}
    for state in list_states(place):
        try:
            load_state(state.path)
            found[state.path.name] = True
        except CheckpointError:
            found[state.path.name] = False
    return found


def main(folder: Path, kind: str) -> None:
    """See above."""
    os.fsync = lambda descriptor: None
    run, place, old = folder / "run", folder / "place", folder / "old"
    run.mkdir()
    for step in (1, 2, 3):
        save = save_state if kind == "files" else save_small_folder
        save(run / f"rwkv-step-{step}.state", small_state(step, run="one"))
    third, second, first = list_states(run)
    (run / "metrics.jsonl").write_text("{}\n")
    copy(folder, first)
    copy(folder, second)
    shutil.copytree(place, old)
    operations = work_until(partial(copy, folder, third), OPERATIONS, None)
    points = []
    for number in range(1, operations + 1):
        shutil.rmtree(place)
        shutil.copytree(old, place)
        kill_before(partial(copy, folder, third), OPERATIONS, number)
        left = verified(place)
        copy(folder, third)
        again = verified(place)
        files = [path.name for path in place.iterdir()]
        points.append({"left": left, "again": again, "files": files})
    print(json.dumps(points))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
