"""Logits and tokens of a GGUF file from llama.cpp (wheel xllamacpp), in another process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rwkv_train.errors import CheckpointError
from rwkv_train.export.target import TargetLogits, Unavailable, imported

# By its path: it needs nothing of this package, which the other process may not find.
_CHILD = Path(__file__).with_name("llama_cpp_child.py")


def llama_cpp_logits(path: Path, prompts: list[list[int]]) -> list[TargetLogits] | Unavailable:
    """Returns the logits of prompts of at most 512 tokens; CheckpointError when it refuses."""
    missing = imported("xllamacpp", "clients")
    if missing is not None:
        return missing
    found = ask_llama_cpp(path, {"prompts": prompts})
    library = f"llama.cpp (xllamacpp {version('xllamacpp')})"
    return [
        TargetLogits(
            library,
            torch.from_numpy(found[f"at_once_{number}"]),
            torch.from_numpy(found[f"one_by_one_{number}"]),
        )
        for number in range(len(prompts))
    ]


def ask_llama_cpp(path: Path, job: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Returns what llama.cpp gives for a job; see `llama_cpp_child` for both.

    Raises CheckpointError with llama.cpp's words when it does not take the file.
    """
    # Not beside the model, whose folder is the export's.
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "job.json"), Path(folder, "result.npz")
        asked.write_text(json.dumps(job), encoding="utf-8")
        words = [sys.executable, str(_CHILD), str(path), str(asked), str(answer)]
        ran = subprocess.run(words, capture_output=True, text=True, errors="replace")
        if ran.returncode != 0:
            said = " ".join(ran.stderr.split()) or f"it ended with status {ran.returncode}"
            raise CheckpointError(f"llama.cpp does not take {path}: {said[-400:]}")
        with np.load(answer) as arrays:
            return {name: arrays[name] for name in arrays.files}
