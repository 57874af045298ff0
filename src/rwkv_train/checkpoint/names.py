"""File names of checkpoints in a project folder: the one place that knows them.

`rwkv-init.pth` holds the initial weights, `rwkv-N.pth` those after mini-epoch N,
`rwkv-final.pth` those of a finished run and `best.pth` those of the lowest validation loss; no
run resumes from the last one, whose name does not begin with rwkv- because RWKV-LM expects a number
there. Next to all but the first may lie `rwkv-N.lora.safetensors`, an adapter, or
`rwkv-N.merged.pth`, a model with its trained states. A training state has the name of its weights
with the suffix .state. One saved between mini-epochs is `rwkv-step-S.state`, S the steps done,
without weights next to it: RWKV-LM takes the number of every rwkv-*.pth for a mini-epoch.
"""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

INIT = "rwkv-init.pth"
FINAL = "rwkv-final.pth"
BEST = "best.pth"
# Initial states that users supply for state tuning, as in RWKV-LM v5.
INIT_STATES = "rwkv-init-state.pth"
INIT_EPOCH = -1

STATE_SUFFIX = ".state"
# In a state that is a folder: what completes it, and torch's list of its tensors.
MANIFEST = "manifest.json"
PART_LIST = ".metadata"
# In a folder of second copies: the run that they are of, and those that it wrote there.
COPIES_FILE = "copies.json"

_STATE = re.compile(r"rwkv-(final|step-[0-9]+|[0-9]+)\.state")
# No leading zeros: a mini-epoch has one name only.
_NUMBERED = re.compile(r"rwkv-(0|[1-9][0-9]*)\.pth")


def numbered(epoch: int) -> str:
    """Returns the name of the checkpoint written after mini-epoch `epoch` (from 0)."""
    if epoch < 0:
        raise ValueError(f"mini-epochs count from 0, got {epoch}")
    return f"rwkv-{epoch}.pth"


def step_state(step: int) -> str:
    """Returns the name of the training state saved after `step` steps, between mini-epochs."""
    return f"rwkv-step-{step}{STATE_SUFFIX}"


def is_state(name: str) -> bool:
    """Tells whether a file of this name is a training state of ours."""
    return _STATE.fullmatch(name) is not None


def epoch_of(name: str) -> int | None:
    """Returns the mini-epoch in a checkpoint's name: N, -1 for the initial one, None for others.

    The final checkpoint has no number: it belongs to the run, not to a mini-epoch.
    """
    if name == INIT:
        return INIT_EPOCH
    match = _NUMBERED.fullmatch(name)
    return int(match.group(1)) if match else None


def kept_path(checkpoint: Path) -> Path:
    """Returns a free path for a file of somebody else in the place of `checkpoint`."""
    # No name that begins with rwkv-, see above.
    paths = (checkpoint.with_name(f"kept-{n}-{checkpoint.name}") for n in count(1))
    return next(path for path in paths if not path.exists())


def merged_path(checkpoint: Path) -> Path:
    """Returns the path of the whole model next to a `checkpoint` of trained initial states."""
    return checkpoint.with_suffix(".merged.pth")


def adapter_path(checkpoint: Path) -> Path:
    """Returns the path of the adapter that is merged into `checkpoint`."""
    return checkpoint.with_suffix(".lora.safetensors")


def list_checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """Lists (mini-epoch, path) of the checkpoints in `folder`, newest first, the initial one last.

    Folders, other files and the final checkpoint are skipped; a missing folder holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [(epoch_of(path.name), path) for path in folder.iterdir()]
    # RWKV-LM's ZeRO-3 runs leave folders of these names, which are no files of weights.
    numbers = [(epoch, path) for epoch, path in found if epoch is not None and path.is_file()]
    return sorted(numbers, reverse=True)
