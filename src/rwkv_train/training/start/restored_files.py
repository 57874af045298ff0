"""Logs and other files of a run, back from beside its copies into an empty project folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rwkv_train.checkpoint.copy_files import copy_file_verified
from rwkv_train.checkpoint.state_place import run_of_copies
from rwkv_train.errors import CheckpointError
from rwkv_train.training.start.resume_point import FromState, ResumePoint
from rwkv_train.training.start.state_copies import files_beside


def restore_files(
    point: ResumePoint, folder: Path, places: Sequence[Path], run: str
) -> ResumePoint:
    """Puts back what lies in the places of a run and is missing in `folder`; says so in notes.

    Only where the state that is resumed is not the folder's own, as on a new disk. A file that
    cannot be put back is named and no fault: the state itself is complete.
    """
    if not isinstance(point, FromState) or point.path.parent == folder:
        return point
    notes: list[str] = []
    for place in places:
        if run_of_copies(place) == run:
            with suppress(OSError):
                notes += _restore(point, place, folder)
    base = point.base
    if base is not None and base.parent in places and (folder / base.name).is_file():
        # The run's own from here on, as it was before.
        base = folder / base.name
    return replace(point, base=base, notes=(*point.notes, *notes))


def _restore(point: FromState, place: Path, folder: Path) -> list[str]:
    restored, faults = [], []
    for path in files_beside(place, point.path.name, point.state.get("base")):
        target = folder / path.name
        if target.exists() or target.is_symlink():
            continue
        try:
            copy_file_verified(path, target, lambda: True)
            restored.append(path.name)
        except CheckpointError as error:
            faults.append(f"not put back: {error.in_one_line()}")
    return [f"put back from {place}: {', '.join(restored)}", *faults] if restored else faults
