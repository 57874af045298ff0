"""Logits from pip's `rwkv`, the inference package of RWKV's author, in a process of its own.

The package takes the version from settings that it reads once, when it is imported.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from rwkv_train.errors import CheckpointError
from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.target import TargetLogits

# argv: the model without its suffix, a file with the job, a file for the result, version 7 or not.
_PROGRAM = """
import os, sys
from importlib.metadata import version
os.environ.update(RWKV_V7_ON=sys.argv[4], RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
import torch
from rwkv.model import RWKV
model, job = RWKV(sys.argv[1], "cpu fp32"), torch.load(sys.argv[2])
start = lambda: job["start"] and [part.clone() for part in job["start"]]
results = []
for tokens in job["prompts"]:
    at_once, _ = model.forward(list(tokens), start(), full_output=True)
    rows, state = [], start()
    for token in tokens:
        logits, state = model.forward([token], state)
        rows.append(logits.clone())
    results.append((at_once, torch.stack(rows)))
torch.save({"version": version("rwkv"), "results": results}, sys.argv[3])
"""


def package_logits(path: Path, model: SourceModel, prompts: list[list[int]]) -> list[TargetLogits]:
    """Returns the logits of GPT mode (at once) and of RNN mode (one by one).

    Raises CheckpointError when the package fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder, "job.pth"), Path(folder, "result.pth")
        torch.save({"prompts": prompts, "start": package_start(model)}, job)
        is_7 = str(int(model.config.rwkv_version == "7"))
        words = [str(path.with_suffix("")), str(job), str(result), is_7]
        command = [sys.executable, "-c", _PROGRAM, *words]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            reason = (ran.stderr.strip().splitlines() or ["no message"])[-1]
            raise CheckpointError(f"the rwkv package cannot use {path.name}: {reason}")
        found = torch.load(result)
    library = f"rwkv {found['version']}"
    return [TargetLogits(library, at_once, rows) for at_once, rows in found["results"]]


def package_start(model: SourceModel) -> list[Tensor] | None:
    """Returns trained initial states as the list that the package's `forward` takes.

    None: it begins with nothing, or, for RWKV-5 and 6, finds them in the file.
    """
    if not model.states or model.config.rwkv_version in ("5", "6"):
        return None
    config, flat = model.config, []
    zero = torch.zeros(config.n_embd)
    for layer in range(config.n_layer):
        learnt = model.states[f"blocks.{layer}.att.time_state"].float()
        if config.rwkv_version == "4":
            # numerator, denominator, and the exponent that both are divided by
            wkv = [learnt[0], torch.ones(config.dim_att), learnt[1]]
        else:
            wkv = [learnt]
        flat += [zero.clone(), *(part.clone() for part in wkv), zero.clone()]
    return flat
