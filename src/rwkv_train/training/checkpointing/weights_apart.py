"""Has a .pth file written from the parts of a training state by a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rwkv_train.checkpoint.number_formats import precision_of
from rwkv_train.errors import CheckpointError
from rwkv_train.files import replacing
from rwkv_train.training.environment import child_variables

_MODULE = "rwkv_train.checkpoint.weights_from_parts"


def write_apart(folder: Path, path: Path, dtype: torch.dtype, about: Mapping[str, Any]) -> str:
    """Writes the weights in the parts in `folder` to `path`; returns the SHA-256 of the file.

    Training keeps its interpreter to itself meanwhile. about: what the file says of itself.
    Raises CheckpointError; what was at `path` before is then unchanged.
    """
    try:
        with replacing(path) as partial:
            return _run([str(folder), str(partial), precision_of(dtype), json.dumps(about)])
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def _run(words: list[str]) -> str:
    """Returns what the process prints; raises CheckpointError with its last words."""
    with subprocess.Popen(
        [sys.executable, "-m", _MODULE, *words],
        # Its end tells the process that this one is gone.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # One tensor after another keeps one processor busy.
        env=child_variables({"OMP_NUM_THREADS": "1"}),
        # A Ctrl-C asks training for a save, not this process for its end.
        start_new_session=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None, "both are pipes"
        told, errors = process.stdout.read(), process.stderr.read()
        status = process.wait()
    if status == 0:
        return told.strip()
    if status < 0:
        raise CheckpointError(
            f"the process that writes {words[1]} was killed by signal {-status} "
            f"({signal.Signals(-status).name})"
        )
    lines = errors.strip().splitlines()
    raise CheckpointError(lines[-1] if lines else f"{_MODULE} ended with status {status}")
