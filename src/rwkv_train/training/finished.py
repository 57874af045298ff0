"""A run that has nothing left to do when it starts."""

from __future__ import annotations

from pathlib import Path

from rwkv_train.checkpoint.names import FINAL
from rwkv_train.checkpoint.resume import state_path
from rwkv_train.config.run_length import RunLength
from rwkv_train.training.environment import is_rank_zero
from rwkv_train.training.progress import Progress
from rwkv_train.training.start.final_weights import publish_final
from rwkv_train.training.start.prepare import Prepared
from rwkv_train.training.start.resume_point import FromState, ResumePoint


def finish_at_once(
    prepared: Prepared, point: ResumePoint, progress: Progress, length: RunLength
) -> int:
    """Returns the exit status of such a run; says that it is finished, and has its end copied.

    Raises CheckpointError when its end is missing and cannot be written.
    """
    if not is_rank_zero():
        return 0
    config, folder = prepared.config, Path(prepared.config.train.proj_dir)
    # Such as what to remove for a new beginning, where weights are gone.
    for note in point.notes:
        print(f"note: {note}")
    if length.completes:
        publish_final(config, point, progress.step)
    _copy_end(prepared, point, folder)
    done = f"{progress.step} of {length.total_steps} steps"
    if progress.step != length.total_steps:
        done = f"it has {progress.step} steps, and {length.total_steps} were asked for"
    print(
        f"the run in {folder} is finished: {done} ({length.reason}). To train "
        "on, raise the limit; for another run choose another --proj_dir"
    )
    return 0


def _copy_end(prepared: Prepared, point: ResumePoint, folder: Path) -> None:
    """Offers the end of the run to the places that lack it."""
    end = state_path(folder / FINAL)
    if isinstance(point, FromState):
        newest = end if end.is_file() else point.path
        prepared.copies.begin(folder, prepared.lineage["run"], point.state.get("base"), newest)
