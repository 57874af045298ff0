"""Weights on disk: read, fit to a model, write atomically.

A checkpoint is a flat dictionary name -> tensor, as a `.pth` of torch or as `.safetensors`. Loading
never executes anything from the file. Faults of files are CheckpointErrors that name the path.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from rwkv_train.checkpoint.checkpoint_kind import checkpoint_kind
from rwkv_train.checkpoint.finite import is_finite
from rwkv_train.checkpoint.fit_weights import FitReport, fit_weights
from rwkv_train.checkpoint.hf_names import checkpoint_keys
from rwkv_train.checkpoint.lazy_tensors import LazyTensors, outlines_of
from rwkv_train.checkpoint.memory_shortage import require_memory_sufficed, write_fault
from rwkv_train.checkpoint.provenance import write_about
from rwkv_train.checkpoint.pth_file import write_pth
from rwkv_train.checkpoint.space import require_space
from rwkv_train.checkpoint.tensor_files import (
    FLOAT_FORMATS,
    map_pth,
    read_pth,
    read_safetensors,
    safetensors_outlines,
    write_safetensors,
)
from rwkv_train.checkpoint.weight_folder import (
    adapter_message,
    training_state_message,
    weight_files,
)
from rwkv_train.checkpoint.weight_keys import find_model, is_adapter_file, without_wrappers
from rwkv_train.errors import CheckpointError, short_reason
from rwkv_train.files import replacing

__all__ = [
    "FitReport",
    "fit_weights",
    "load_tensors",
    "load_weights",
    "open_weights",
    "read_shapes",
    "save_weights",
]

# The parts of an RWKV model, in which all tensors are weights.
_MODEL = {"emb", "blocks", "ln_out", "head", "head_q", "head_k"}
# web-rwkv's weights and states are safetensors by other names.
_SAFETENSORS = (".safetensors", ".st", ".state")

_Entry = TypeVar("_Entry")


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Reads the shape of every tensor in a model, keys as `load_weights` gives them.

    Reads names and sizes, not the data. Raises CheckpointError.
    """
    path = Path(path)
    cleaned = _read(path, safetensors_outlines, map_pth)
    _require_model(path, cleaned)
    return {key: tuple(tensor.shape) for key, tensor in cleaned.items()}


def load_weights(path: str | Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Reads a model's tensors to the CPU, in file order, floats as `dtype` (None: as stored).

    path: a file, or a folder as Hugging Face lays them out. Wrapper prefixes are stripped, the
    masks that RWKV-LM saves (copy_mask, tiny_mask) dropped.
    Raises CheckpointError when the file is missing, damaged, holds NaN or infinity, or holds
    anything but the named tensors of a model in a float format.
    """
    path = Path(path)
    tensors = _read(path, read_safetensors, read_pth)
    # First: of formats that are no weights, not all know whether they are finite.
    _require_model(path, tensors)
    _require_finite(tensors, f"{path} is damaged or comes from a run that diverged: it")
    if dtype is None:
        return tensors
    return {key: _as_dtype(tensor, dtype) for key, tensor in tensors.items()}


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads named tensors as `load_weights` does, of an adapter too. Raises CheckpointError."""
    path = Path(path)
    tensors = _read(path, read_safetensors, read_pth)
    _require_finite(tensors, f"{path} is damaged or comes from a run that diverged: it")
    return tensors


def open_weights(path: str | Path) -> LazyTensors:
    """Returns a model's tensors as fp32, each converted when it is asked for.

    Those of a .pth stay on the disk until then. Raises CheckpointError, as `load_weights`, but for
    values that are not finite.
    """
    path = Path(path)
    stored = _read(path, read_safetensors, map_pth)
    _require_model(path, stored)
    outlines = {key: value.to("meta", torch.float32) for key, value in stored.items()}
    return LazyTensors(outlines, lambda key: stored[key].float())


def save_weights(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    dtype: torch.dtype,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes `state_dict` to `path`, floats as `dtype`, keys in the given order.

    Lazy tensors are made one at a time, but for a safetensors file.

    about: plain values that `read_about` gives back; other readers of a .pth do not see them.
    `path` either holds the complete new file afterwards or what it held before. A name ending in
    .safetensors, or as web-rwkv's files do, is written in that format. Raises CheckpointError when
    a value is not finite or the file cannot be written; nothing is left behind then.
    """
    path = Path(path)
    outlines = {key: _as_dtype(value, dtype) for key, value in outlines_of(state_dict).items()}
    require_space(path, outlines)

    def converted(key: str) -> Tensor:
        tensor = _as_dtype(state_dict[key].detach(), dtype)
        # After the conversion: a large fp32 value may become infinite as fp16.
        if not is_finite(tensor):
            _require_finite(
                {name: _as_dtype(value, dtype) for name, value in state_dict.items()},
                f"{path} was not written: as {_short(dtype)} the model",
            )
        return tensor

    try:
        with replacing(path) as partial:
            if path.suffix in _SAFETENSORS:
                write_safetensors(partial, {key: converted(key) for key in state_dict})
            else:
                write_pth(partial, outlines, converted)
            if about is not None:
                write_about(partial, about)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise write_fault(path, error, "make room or name another folder") from error


def _read(
    path: Path,
    read_safetensors: Callable[[Path], dict[str, Tensor]],
    read_pth: Callable[[Path], Any],
) -> dict[str, Tensor]:
    """Returns the tensors of all files of a model, as these two read a file of either kind."""
    found: dict[str, Tensor] = {}
    for file in weight_files(path):
        if checkpoint_kind(file) == "safetensors":
            tensors = _guarded(file, read_safetensors)
        else:
            tensors = _tensors_only(file, _guarded(file, read_pth))
        _add(found, file, tensors)
    return _clean(path, found)


def _guarded(path: Path, read: Callable[[Path], _Entry]) -> _Entry:
    """Calls read(path); raises CheckpointError for every way a file can be unreadable."""
    try:
        with warnings.catch_warnings():
            # Of torch, about pickles it will refuse in the next moment anyway.
            warnings.simplefilter("ignore")
            return read(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, which is not loaded because it could "
            f"run code; save it again as a plain dictionary of tensors"
        ) from error
    except Exception as error:
        require_memory_sufficed(path, error)
        # Garbage makes unpicklers raise nearly anything: IndexError, TypeError, struct.error …
        raise CheckpointError(
            f"{path} cannot be read: it is truncated, damaged or no checkpoint "
            f"({short_reason(error)}); copy it again or use another checkpoint"
        ) from error


def _tensors_only(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds {type(content).__name__}, expected a flat dictionary name -> tensor"
        )
    if "moments" in content and "step" in content:
        raise CheckpointError(training_state_message(path))
    content = find_model(content)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds {type(value).__name__} under {key!r}, expected a flat dictionary "
                f"name -> tensor; take the weights out of it and save them alone"
            )
    return dict(content)


def _add(found: dict[str, Tensor], file: Path, tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if key in found:
            raise CheckpointError(f"{file} holds {key}, which another shard holds too")
        found[key] = value


def _clean(path: Path, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns `entries` by checkpoint key, without wrapper prefixes and RWKV-LM's masks."""
    kept = {
        key: value
        for key, value in entries.items()
        if key.split(".")[-1] not in ("copy_mask", "tiny_mask")
    }
    return checkpoint_keys(path, without_wrappers(path, kept))


def _require_model(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for an adapter, and for weights that are not plain numbers."""
    if is_adapter_file(tensors):
        raise CheckpointError(adapter_message(path))
    odd = [
        f"{key} ({_short(tensor.dtype)})"
        for key, tensor in tensors.items()
        if key.split(".")[0] in _MODEL and tensor.dtype not in FLOAT_FORMATS.values()
    ]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise CheckpointError(
            f"{path} holds weights that are no plain floating-point numbers, as a quantised model "
            f"does: {', '.join(odd[:3])}{more}; give the fp32, bf16 or fp16 model it was made from"
        )


def _require_finite(tensors: Mapping[str, Tensor], subject: str) -> None:
    bad = [key for key, tensor in tensors.items() if not is_finite(tensor)]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CheckpointError(
            f"{subject} holds NaN or infinity in {', '.join(bad[:3])}{more}; go back to an "
            f"earlier checkpoint"
        )


def _as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
