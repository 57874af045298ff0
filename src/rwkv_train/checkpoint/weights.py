"""Weights on disk: read, fit to a model, write atomically.

A checkpoint is a flat dictionary name -> tensor, as a `.pth` of torch or as `.safetensors`. Loading
never executes anything from the file. Faults of files are CheckpointErrors that name the path.
"""

from __future__ import annotations

import json
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

from rwkv_train.checkpoint.fit_weights import FitReport, fit_weights
from rwkv_train.checkpoint.hf_names import checkpoint_keys
from rwkv_train.checkpoint.space import require_space
from rwkv_train.errors import CheckpointError, short_reason
from rwkv_train.files import replacing

__all__ = ["FitReport", "fit_weights", "load_weights", "read_about", "read_shapes", "save_weights"]

# Left by sharded DeepSpeed runs, DistributedDataParallel and LightningModules.
_PREFIXES = ("_forward_module.", "module.", "model.")

# A part of the archive that torch writes, with a name that it does not use.
_ABOUT = "archive/rwkv_train.json"

_Entry = TypeVar("_Entry")


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Reads the shape of every tensor in a checkpoint, keys as `load_weights` gives them.

    Reads names and sizes, not the data. Raises CheckpointError.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _clean(path, _guarded(path, _safetensors_shapes), lambda shape: shape[::-1])
    tensors = _clean(path, _tensors_only(path, _guarded(path, _map_pth)), Tensor.t)
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def load_weights(path: str | Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Reads a checkpoint's tensors to the CPU, in file order, floats as `dtype` (None: as stored).

    Wrapper prefixes are stripped, the masks that RWKV-LM saves (copy_mask, tiny_mask) dropped.
    Raises CheckpointError when the file is missing, damaged, holds NaN or infinity, or holds
    anything but named tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors = _clean(path, _guarded(path, _read_safetensors), Tensor.t)
    else:
        tensors = _clean(path, _tensors_only(path, _guarded(path, _read_pth)), Tensor.t)
    _require_finite(tensors, f"{path} is damaged or comes from a run that diverged: it")
    if dtype is None:
        return tensors
    return {key: _as_dtype(tensor, dtype) for key, tensor in tensors.items()}


def read_about(path: Path) -> dict[str, Any] | None:
    """Returns what `save_weights` wrote about a .pth file, {} for one without; None: no file."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read(_ABOUT))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return {}
    return found if isinstance(found, dict) else {}


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
                _write_about(partial, about)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {short_reason(error)}; make room or name another folder. "
            f"What was there before is unchanged"
        ) from error


def _guarded(path: Path, read: Callable[[Path], _Entry]) -> _Entry:
    """Calls read(path); raises CheckpointError for every way a file can be unreadable."""
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder, expected a .pth or .safetensors file; shards of a ZeRO-3 run "
            f"must be joined first, with the zero_to_fp32.py that lies next to them"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path given to --load_model")
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
    # Only zip files, which torch writes since 1.6, can be mapped; older ones are read whole.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _read_pth(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        # torch does not compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of its part {damaged}")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def _tensors_only(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path} holds {type(content).__name__}, expected a flat dictionary name -> tensor"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path} holds {type(value).__name__} under {key!r}, expected a flat dictionary "
                f"name -> tensor; take the weights out of it and save them alone"
            )
    return dict(content)


def _clean(
    path: Path, entries: Mapping[str, _Entry], transposed: Callable[[_Entry], _Entry]
) -> dict[str, _Entry]:
    """Returns `entries` by checkpoint key, without wrapper prefixes and RWKV-LM's masks."""
    cleaned: dict[str, _Entry] = {}
    for key, value in entries.items():
        name = _strip_prefixes(key)
        if name.split(".")[-1] in ("copy_mask", "tiny_mask"):
            continue
        if name in cleaned:
            raise CheckpointError(f"{path} holds {name} twice, the second time as {key}")
        cleaned[name] = value
    return checkpoint_keys(path, cleaned, transposed)


def _strip_prefixes(key: str) -> str:
    # Again and again: a LightningModule inside DeepSpeed's engine has two.
    while key.startswith(_PREFIXES):
        key = key.split(".", 1)[1]
    return key


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
        save_file(tensors, path)
        path.chmod(mode)
        return
    # A handle, because given a path torch writes its name into the file.
    with path.open("wb") as file:
        torch.save(tensors, file)


def _write_about(path: Path, about: Mapping[str, Any]) -> None:
    # In the file itself, so that it stays with the weights wherever they are copied. With a fixed
    # date: equal weights are equal files.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(_ABOUT), json.dumps(about))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
