"""The state of a sequence on disk: a .safetensors file that knows its model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.checkpoint.memory_shortage import write_fault
from rwkv_train.errors import CheckpointError, short_reason
from rwkv_train.files import replacing
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.model_identity import model_identity
from rwkv_train.inference.engine.sequence_state import (
    SequenceState,
    state_of_tensors,
    state_tensors,
)

_FORMAT = "rwkv_train sequence state 1"
_LOGITS = "logits"


@dataclass(frozen=True)
class SavedSequence:
    """A sequence as it was saved.

    logits: [V], behind its last token; None: they were not kept.  about: the values given with it.
    """

    state: SequenceState
    logits: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def save_sequence(path: Path, saved: SavedSequence, engine: Engine) -> None:
    """Writes a sequence's state, in place of what `path` held; all of it or nothing.

    Raises CheckpointError when the file cannot be written.
    """
    tensors = state_tensors(saved.state.alone())
    if saved.logits is not None:
        tensors[_LOGITS] = saved.logits.float()
    kept = {name: value.detach().cpu().clone() for name, value in tensors.items()}
    facts = {
        "format": _FORMAT,
        "content": content_digest(dict(sorted(kept.items()))),
        "model": model_identity(engine.model),
        "version": engine.model.config.rwkv_version,
        "position": saved.state.position,
        "last_tokens": list(saved.state.last_tokens),
        "about": dict(saved.about),
    }
    try:
        with replacing(path) as partial:
            partial.touch()
            # safetensors makes files that only their owner can read.
            mode = partial.stat().st_mode
            save_file(kept, partial, {"rwkv_train": json.dumps(facts, ensure_ascii=False)})
            partial.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise write_fault(path, error, "make room or name another folder") from error


def load_sequence(path: Path, engine: Engine) -> SavedSequence:
    """Reads what `save_sequence` wrote, to the engine's device.

    Raises CheckpointError for a file that is missing, damaged, no state, or one of another model.
    """
    facts, tensors = _read(path)
    config = engine.model.config
    if facts["model"] != model_identity(engine.model):
        raise CheckpointError(
            f"{path} is the state of another model (RWKV-{facts['version']}; this one is RWKV-"
            f"{config.rwkv_version}, L{config.n_layer} D{config.n_embd}, or has other weights); "
            "load the model it was saved with, adapters included"
        )
    logits = tensors.pop(_LOGITS, None)
    try:
        block = state_of_tensors(tensors, engine.start().alone())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}; save the state again") from error
    state = SequenceState(block, 0, facts["position"], tuple(facts["last_tokens"]))
    moved = None if logits is None else logits.to(engine.device)
    return SavedSequence(state, moved, facts["about"])


def is_sequence_file(path: Path) -> bool:
    """Tells whether a file is one that `save_sequence` wrote, for whatever model."""
    try:
        _read(path)
    except CheckpointError:
        return False
    return True


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give a file that was saved as a state")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a file that was saved as a state")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("rwkv_train", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no state of a sequence, or damaged ({short_reason(error)}); give a file "
            "that was saved as a state"
        ) from error
    needed = {"content", "model", "version", "position", "last_tokens", "about"}
    known = isinstance(facts, dict) and facts.get("format") == _FORMAT
    if not known or not needed <= facts.keys() or not isinstance(facts["about"], dict):
        raise CheckpointError(
            f"{path} is no state of a sequence; trained initial states are given by --load_states, "
            "adapters by --lora"
        )
    # safetensors has no checksum of its own. Its order of tensors is not that of writing.
    if facts["content"] != content_digest(dict(sorted(tensors.items()))):
        raise CheckpointError(f"{path} is damaged: its content has changed; save the state again")
    return facts, tensors
