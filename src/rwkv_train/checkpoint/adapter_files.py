"""Low-rank adapters on disk, in peft's format, and their merger with a base model.

An adapter is a .safetensors file of tensors and a .json file of settings next to it. Keys are
`base_model.model.` followed by

    blocks.0.att.key.lora_A.weight, .lora_B.weight       [r, in] and [out, r]
    blocks.0.att.key.lora_magnitude_vector               [out], with DoRA only
    any parameter that was trained fully                 its whole new value

A PiSSA adapter is written as an ordinary one of rank 2 r that fits the original base model: its
start is subtracted again. Format: peft 0.17, utils/save_and_load.py and tuners/lora.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rwkv_train.checkpoint.lazy_tensors import LazyTensors, outlines_of, picked
from rwkv_train.checkpoint.weights import load_tensors, save_weights
from rwkv_train.errors import CheckpointError
from rwkv_train.files import write_atomically

_PREFIX = "base_model.model."
_A, _B, _LENGTHS = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
# Names of the parameters in a training model.
_OWN = ("lora_A", "lora_B", "lora_A0", "lora_B0", "lora_magnitude")


@dataclass(frozen=True)
class Adapter:
    """A trained change of a base model.

    pairs: matrix name (without .weight) -> A [r, in], B [out, r]; the change is scale B A.
    lengths: matrix name -> [out], the length of every row (DoRA).
    whole: parameter name -> new value.
    """

    scale: float
    rank: int
    pairs: dict[str, tuple[Tensor, Tensor]]
    lengths: dict[str, Tensor] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)


def split_adapter(
    weights: Mapping[str, Tensor], scale: float, whole: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], Adapter]:
    """Returns the base model among the parameters of a model with adapters, and the change of it.

    weights: by parameter name; the base keeps their order.  whole: those trained fully.
    """
    base = picked(weights, [name for name in weights if name.rpartition(".")[2] not in _OWN])
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    lengths: dict[str, Tensor] = {}
    for name in weights:
        if not name.endswith(".lora_A"):
            continue
        path = name.removesuffix(".lora_A")
        down, up = weights[name], weights[f"{path}.lora_B"]
        if f"{path}.lora_A0" in weights:
            # B A - B0 A0 as one product of twice the rank, which any reader of peft's can merge.
            down = torch.cat((down, weights[f"{path}.lora_A0"]))
            up = torch.cat((up, -weights[f"{path}.lora_B0"]), 1)
        pairs[path] = (down, up)
        if f"{path}.lora_magnitude" in weights:
            lengths[path] = weights[f"{path}.lora_magnitude"]
    rank = max(len(down) for down, _ in pairs.values())
    return base, Adapter(scale, rank, pairs, lengths, dict(whole))


def merge_adapter(base: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """Returns the base model with the change in it, fp32, in the base's order.

    Every matrix is computed in fp64 and rounded once: a PiSSA adapter at its start gives the base
    back bit for bit. Raises CheckpointError when the adapter does not fit the base.
    """
    return dict(merged_tensors(base, adapter))


def merged_tensors(base: Mapping[str, Tensor], adapter: Adapter) -> LazyTensors:
    """Returns what `merge_adapter` does, each tensor computed when it is asked for."""
    outlines = outlines_of(base)
    needed = [f"{path}.weight" for path in adapter.pairs] + list(adapter.whole)
    missing = [name for name in needed if name not in outlines]
    if missing:
        raise CheckpointError(
            f"the adapter changes {missing[0]}, which the base model does not have"
            f"{f' ({len(missing)} such tensors)' if len(missing) > 1 else ''}; give the base model "
            f"that it was trained on"
        )
    for name, value in adapter.whole.items():
        _reshaped(name, value, outlines[name])
    for path, (down, up) in adapter.pairs.items():
        matrix = outlines[f"{path}.weight"]
        if (len(up), down.shape[1]) != tuple(matrix.shape):
            raise CheckpointError(
                f"the adapter of {path}.weight is for a matrix of {len(up)} x {down.shape[1]}, the "
                f"base model has {' x '.join(map(str, matrix.shape))}; give the model it was "
                "trained on"
            )
    floats = {name: outline.float() for name, outline in outlines.items()}
    return LazyTensors(floats, lambda name: _merged(name, base, adapter))


def _merged(name: str, base: Mapping[str, Tensor], adapter: Adapter) -> Tensor:
    """Returns a tensor of the base model with the change in it."""
    path = name.removesuffix(".weight")
    if name != path and path in adapter.pairs:
        down, up = adapter.pairs[path]
        # fp64: the subtraction of a PiSSA start cancels, and must leave the base's own bits.
        changed = base[name].double() + adapter.scale * (up.double() @ down.double())
        if path in adapter.lengths:
            # A row of zeros has no direction to stretch; the bound keeps it zero.
            length = changed.norm(dim=1).clamp_min(1e-12)
            changed *= (adapter.lengths[path].double() / length)[:, None]
        return changed.float()
    if name in adapter.whole:
        return _reshaped(name, adapter.whole[name], base[name])
    return base[name].float()


def save_adapter(path: Path, adapter: Adapter, dtype: torch.dtype, base_name: str) -> None:
    """Writes `path` (.safetensors) and its settings (.json next to it).

    base_name: file name of the base model, for readers. Raises CheckpointError.
    """
    tensors = {}
    for name, (down, up) in adapter.pairs.items():
        tensors[_PREFIX + name + _A], tensors[_PREFIX + name + _B] = down, up
    tensors |= {_PREFIX + name + _LENGTHS: value for name, value in adapter.lengths.items()}
    tensors |= {_PREFIX + name: value for name, value in adapter.whole.items()}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        # peft divides it by r, which a PiSSA adapter has doubled: the quotient stays the scale.
        "lora_alpha": adapter.scale * adapter.rank,
        "lora_dropout": 0.0,
        # peft compares the ends of module names, so a name holds for all blocks.
        "target_modules": sorted({".".join(name.split(".")[2:]) for name in adapter.pairs}),
        "modules_to_save": None,
        "use_dora": bool(adapter.lengths),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    save_weights(path, tensors, dtype)
    try:
        write_atomically(settings_path(path), (json.dumps(settings, indent=1) + "\n").encode())
    except OSError as error:
        raise CheckpointError(f"cannot write {settings_path(path)}: {error}") from error


def load_adapter(path: Path) -> Adapter:
    """Reads what `save_adapter` or peft wrote: a .safetensors file, or peft's folder.

    Raises CheckpointError.
    """
    if path.is_dir():
        path = path / "adapter_model.safetensors"
    tensors = {name.removeprefix(_PREFIX): value for name, value in load_tensors(path).items()}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    lengths: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.endswith(_A):
            module = name.removesuffix(_A)
            if module + _B not in tensors:
                raise CheckpointError(f"{path} holds {name} without {module}{_B}; it is damaged")
            pairs[module] = (value, tensors[module + _B])
        elif name.endswith(_LENGTHS):
            lengths[name.removesuffix(_LENGTHS)] = value
        elif not name.endswith(_B):
            whole[name] = value
    if not pairs:
        raise CheckpointError(
            f"{path} holds no low-rank adapter (no tensor ends in {_A}); give an adapter, such as "
            f"rwkv-final.lora.safetensors"
        )
    scale = _read_scale(settings_path(path))
    return Adapter(scale, max(len(a) for a, _ in pairs.values()), pairs, lengths, whole)


def settings_path(path: Path) -> Path:
    """Returns the settings file of the adapter `path`: peft's own name, or that of the adapter."""
    if path.name == "adapter_model.safetensors":
        return path.with_name("adapter_config.json")
    return path.with_suffix(".json")


def _read_scale(path: Path) -> float:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
        # The patterns give single matrices another rank or scale than r and lora_alpha tell.
        unsupported = [
            key for key in ("fan_in_fan_out", "rank_pattern", "alpha_pattern") if settings.get(key)
        ]
        if settings.get("peft_type", "LORA") != "LORA" or unsupported or rank < 1:
            raise CheckpointError(
                f"{path}: only plain LoRA and DoRA adapters can be merged, not "
                f"{', '.join(unsupported) or settings.get('peft_type')}"
            )
        # rsLoRA divides by the root of the rank, peft's default by the rank.
        return alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); it belongs next to the adapter and tells "
            f"its scale"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no adapter's settings: expected JSON with r and lora_alpha"
        ) from error


def _reshaped(name: str, value: Tensor, like: Tensor) -> Tensor:
    if value.numel() != like.numel():
        raise CheckpointError(
            f"the adapter's {name} has shape {list(value.shape)}, the base model's "
            f"{list(like.shape)}; give the base model that it was trained on"
        )
    return value.float().reshape(like.shape)
