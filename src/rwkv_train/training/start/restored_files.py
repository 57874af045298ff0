"""Logs and other files of a run, back from beside the copy that it resumes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rwkv_train.checkpoint.copy_files import copy_file_verified
from rwkv_train.errors import CheckpointError
from rwkv_train.training.start.resume_point import FromState, ResumePoint
from rwkv_train.training.start.state_copies import files_beside


def restore_files(point: ResumePoint, folder: Path) -> ResumePoint:
    """Puts back what lies beside a resumed copy and is missing in `folder`; says which, in a note.

    A file that cannot be put back is named and no fault: the state itself is complete.
    """
    if not isinstance(point, FromState) or point.path.parent == folder:
        return point
    restored, notes = [], []
    for path in files_beside(point.path.parent, point.path.name, point.state.get("base")):
        target = folder / path.name
        if target.exists() or target.is_symlink():
            continue
        try:
            copy_file_verified(path, target, lambda: True)
            restored.append(path.name)
        except CheckpointError as error:
            notes.append(f"not put back: {error.in_one_line()}")
    if restored:
        notes.insert(0, f"put back from {point.path.parent}: {', '.join(restored)}")
    base = point.base
    if base is not None and base.name in restored:
        # The run's own from here on, as it was before.
        base = folder / base.name
    return replace(point, base=base, notes=(*point.notes, *notes))
