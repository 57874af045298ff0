"""Weights on disk: read, fit to a model, write atomically.

A checkpoint is a flat dictionary name -> tensor, as a `.pth` of torch or as `.safetensors`. Loading
never executes anything from the file. Faults of files are CheckpointErrors that name the path.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rwkv_train.checkpoint.checkpoint_kind import checkpoint_kind
from rwkv_train.checkpoint.fit_weights import FitReport, fit_weights
from rwkv_train.checkpoint.hf_names import checkpoint_keys
from rwkv_train.checkpoint.provenance import write_about
from rwkv_train.checkpoint.space import require_space
from rwkv_train.checkpoint.weight_folder import adapter_message, weight_files
from rwkv_train.checkpoint.weight_keys import find_model, is_adapter_file, without_wrappers
from rwkv_train.errors import CheckpointError, short_reason
from rwkv_train.files import replacing

__all__ = [
    "FitReport",
    "fit_weights",
    "load_tensors",
    "load_weights",
    "read_shapes",
    "save_weights",
]

# The parts of an RWKV model, in which all tensors are weights.
_MODEL = {"emb", "blocks", "ln_out", "head", "head_q", "head_k"}
# Formats of weights, by the names that safetensors gives them.
_FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

_Entry = TypeVar("_Entry")


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Reads the shape of every tensor in a model, keys as `load_weights` gives them.

    Reads names and sizes, not the data. Raises CheckpointError.
    """
    path = Path(path)
    cleaned = _read(path, _safetensors_outlines, _map_pth)
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
    tensors = _read(path, _read_safetensors, _read_pth)
    # First: of formats that are no weights, not all know whether they are finite.
    _require_model(path, tensors)
    _require_finite(tensors, f"{path} is damaged or comes from a run that diverged: it")
    if dtype is None:
        return tensors
    return {key: _as_dtype(tensor, dtype) for key, tensor in tensors.items()}


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads named tensors as `load_weights` does, of an adapter too. Raises CheckpointError."""
    path = Path(path)
    tensors = _read(path, _read_safetensors, _read_pth)
    _require_finite(tensors, f"{path} is damaged or comes from a run that diverged: it")
    return tensors


def save_weights(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    dtype: torch.dtype,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes `state_dict` to `path`, floats as `dtype`, keys in the given order.

    about: plain values that `read_about` gives back; other readers of a .pth do not see them.
    `path` either holds the complete new file afterwards or what it held before. A name ending in
    .safetensors is written in that format. Raises CheckpointError when a value is not finite or
    the file cannot be written; nothing is left behind then.
    """
    path = Path(path)
    # A clone owns exactly its own storage: torch.save would write all of a view's storage.
    tensors = {
        key: _as_dtype(tensor.detach(), dtype).cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in state_dict.items()
    }
    # After the conversion: a large fp32 value may become infinite as fp16.
    _require_finite(tensors, f"{path} was not written: as {_short(dtype)} the model")
    require_space(path, tensors)
    try:
        with replacing(path) as partial:
            _write(partial, tensors, safetensors=path.suffix == ".safetensors")
            if about is not None:
                write_about(partial, about)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {short_reason(error)}; make room or name another folder. "
            f"What was there before is unchanged"
        ) from error


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
        # Garbage makes unpicklers raise nearly anything: IndexError, TypeError, struct.error …
        raise CheckpointError(
            f"{path} cannot be read: it is truncated, damaged or no checkpoint "
            f"({short_reason(error)}); copy it again or use another checkpoint"
        ) from error


def _map_pth(path: Path) -> Any:
    # Only zip files, which torch writes since 1.6, can be mapped; older ones are read whole. By
    # this ending torch takes any file for safetensors, unless it is given a handle.
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_pth(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        # torch does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of its part {damaged}")
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _safetensors_outlines(path: Path) -> dict[str, Tensor]:
    """Returns tensors of shape and number format alone."""
    with safe_open(path, framework="pt") as file:
        parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        return {
            key: torch.empty(
                part.get_shape(), dtype=_FORMATS.get(part.get_dtype(), torch.uint8), device="meta"
            )
            for key, part in parts.items()
        }


def _tensors_only(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds {type(content).__name__}, expected a flat dictionary name -> tensor"
        )
    if "moments" in content and "step" in content:
        raise CheckpointError(
            f"{path} is a training state; resume it by giving its folder as --proj_dir, or give "
            f"the .pth file next to it"
        )
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
    return checkpoint_keys(path, without_wrappers(path, kept), Tensor.t)


def _require_model(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for an adapter, and for weights that are not plain numbers."""
    if is_adapter_file(tensors):
        raise CheckpointError(adapter_message(path))
    odd = [
        f"{key} ({_short(tensor.dtype)})"
        for key, tensor in tensors.items()
        if key.split(".")[0] in _MODEL and tensor.dtype not in _FORMATS.values()
    ]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise CheckpointError(
            f"{path} holds weights that are no plain floating-point numbers, as a quantised model "
            f"does: {', '.join(odd[:3])}{more}; give the fp32, bf16 or fp16 model it was made from"
        )


def _require_finite(tensors: Mapping[str, Tensor], subject: str) -> None:
    bad = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CheckpointError(
            f"{subject} holds NaN or infinity in {', '.join(bad[:3])}{more}; go back to an "
            f"earlier checkpoint"
        )


def _as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _write(path: Path, tensors: dict[str, Tensor], *, safetensors: bool) -> None:
    if safetensors:
        # safetensors makes files that only their owner can read.
        path.touch()
        mode = path.stat().st_mode
        # transformers refuses a file that does not say so.
        save_file(tensors, path, {"format": "pt"})
        path.chmod(mode)
        return
    # A handle, because given a path torch writes its name into the file.
    with path.open("wb") as file:
        torch.save(tensors, file)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
