"""The files of weights in a folder, as Hugging Face lays them out: one, or shards with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkv_train.checkpoint.names import MANIFEST, PART_LIST
from rwkv_train.errors import CheckpointError

_ONE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = "adapter_config.json"


def weight_files(path: Path) -> list[Path]:
    """Returns the files that together hold the weights at `path`, which may be a folder.

    Raises CheckpointError for a folder that holds something else, saying what to give instead.
    """
    if not path.is_dir():
        return [path]
    if (path / _ADAPTER).is_file():
        raise CheckpointError(adapter_message(path))
    _require_rwkv(path)
    for name in _ONE:
        index = path / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
        if (path / name).is_file():
            return [path / name]
    files = sorted(p.name for p in path.iterdir() if p.suffix in (".pth", ".safetensors"))
    if files:
        raise CheckpointError(
            f"{path} is a folder with {len(files)} files of weights; give one of them: "
            f"{', '.join(files[:6])}{' …' if len(files) > 6 else ''}"
        )
    if (path / PART_LIST).is_file():
        # Of ours: those of other trainers have no manifest.
        raise CheckpointError(
            training_state_message(path)
            if (path / MANIFEST).is_file()
            else f"{path} is a checkpoint of torch.distributed.checkpoint; make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} MODEL.pth"
        )
    raise CheckpointError(
        f"{path} is a folder, expected a .pth or .safetensors file, or a folder with one of "
        f"{', '.join(_ONE)}; shards of a ZeRO-3 run must be joined first, with the zero_to_fp32.py "
        f"that lies next to them"
    )


def training_state_message(path: Path) -> str:
    """Returns what to do with a training state that was given where a model is asked for."""
    return (
        f"{path} is a training state; resume it by giving the folder it lies in as --proj_dir, or "
        f"give the .pth file next to it"
    )


def adapter_message(path: Path) -> str:
    """Returns what to do with an adapter that was given where a model is asked for."""
    return (
        f"{path} is an adapter, which changes a model and is none; merge it first: python -m "
        f"rwkv_train.checkpoint.merge BASE.pth {path} MERGED.pth, and give MERGED.pth"
    )


def number_beside(path: Path, name: str) -> float | None:
    """Returns a positive number in the config.json of weights, which may be a folder or a file.

    None where there is no such setting.  Raises CheckpointError for one that is no such number.
    """
    config = (path if path.is_dir() else path.parent) / "config.json"
    number = _read(config).get(name) if config.is_file() else None
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < 1e9:
        raise CheckpointError(f"{config}: {name} is {number!r}, expected a positive number")
    return float(number)


def _shards(index: Path) -> list[Path]:
    places = _read(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} is no index of shards: it lacks weight_map")
    names = sorted(set(map(str, places.values())))
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{index} names files outside its folder; it is no index of shards")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(names)} shards: "
            f"{', '.join(missing[:4])}; download or copy it again"
        )
    return [index.parent / name for name in names]


def _require_rwkv(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        return
    kind = _read(path).get("model_type")
    if isinstance(kind, str) and not kind.lower().startswith("rwkv"):
        raise CheckpointError(f"{folder} holds a model of type {kind}, expected RWKV (config.json)")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON; copy the folder again") from error
    return found if isinstance(found, dict) else {}
