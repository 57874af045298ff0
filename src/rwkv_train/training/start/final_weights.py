"""The end of a run that has been reached already, because its budget was lowered."""

from __future__ import annotations

from pathlib import Path

from rwkv_train.checkpoint.digest import file_digest
from rwkv_train.checkpoint.names import FINAL
from rwkv_train.checkpoint.resume import copy_saved_state, state_path
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.training.checkpointing.weight_files import (
    require_same_kind,
    stored_dtype,
    write_weight_files,
)
from rwkv_train.training.start.resume_point import Fresh, FromState, ResumePoint


def publish_final(config: ResolvedConfig, point: ResumePoint, step: int) -> None:
    """Writes rwkv-final.pth and its state from `point`, unless they are what it stands for.

    Says so. step: where the run is, at or behind its end. Raises CheckpointError.
    """
    assert not isinstance(point, Fresh), "a run that has not begun has not reached its end"
    folder, kind = Path(config.train.proj_dir), config.train.train_type
    final = folder / FINAL
    if isinstance(point, FromState):
        require_same_kind(point.state, point.path, config)
        if point.path == state_path(final) and final.is_file():
            return
    elif kind != "all":
        # Bare weights of such a run hold a merged model, or states without one.
        return
    start = point.load()
    write_weight_files(final, start.tensors, config, stored_dtype(config), start.base)
    if isinstance(point, FromState):
        # To train on later from here, as after any other end.
        changes = {"weights_digest": file_digest(final)}
        copy_saved_state(point.state, point.path, state_path(final), changes)
    print(f"wrote {final} from {point.path}, which is at step {step}")
