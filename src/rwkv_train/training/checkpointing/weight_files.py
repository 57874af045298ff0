"""The files of a checkpoint that are for the world, and what of the weights its state keeps.

| --train_type | rwkv-N.pth                        | next to it                                    |
|--------------|-----------------------------------|-----------------------------------------------|
| all          | the model                         |                                               |
| states       | the states alone, as in RWKV-LM   | rwkv-N.merged.pth, the model with them        |
| lora         | the model with the adapters in it | rwkv-N.lora.safetensors and .json, them alone |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_train.checkpoint.adapter_files import merged_tensors, save_adapter, split_adapter
from rwkv_train.checkpoint.lazy_tensors import picked
from rwkv_train.checkpoint.names import adapter_path, merged_path
from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import AdapterConfig, listed
from rwkv_train.errors import ConfigError
from rwkv_train.models.adapters import is_adapter, learns


def stored_dtype(config: ResolvedConfig) -> torch.dtype:
    """Returns the number format of the checkpoints of a run."""
    return torch.float32 if config.train.save_fp32 else DTYPES[config.hardware.precision]


def write_weight_files(
    path: Path,
    weights: Mapping[str, Tensor],
    config: ResolvedConfig,
    dtype: torch.dtype,
    base: Mapping[str, Any] | None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes the checkpoint `path` and the files that belong next to it.

    weights: all parameters by name, fp32.  base: record of the frozen base model, if any.  about:
    plain values that `read_about` gives back of `path`.
    Raises CheckpointError when they cannot be written.
    """
    kind = config.train.train_type
    if kind == "all":
        save_weights(path, weights, dtype, about)
        return
    trained = _trained(weights, config)
    if kind == "states":
        save_weights(merged_path(path), weights, dtype)
        save_weights(path, trained, dtype, about)
        return
    assert base is not None, "adapters have a base model"
    whole = {name: trained[name] for name in trained if not is_adapter(name)}
    scale = config.adapter.lora_alpha / config.adapter.lora_r
    frozen, adapter = split_adapter(weights, scale, whole)
    merged = merged_tensors(frozen, adapter)
    # In fp32: small, and merging the file gives the merged checkpoint again.
    save_adapter(adapter_path(path), adapter, torch.float32, Path(base["path"]).name)
    save_weights(path, merged, dtype, about)


def state_entries(config: ResolvedConfig, base: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what `require_same_kind` compares, and which frozen base model a state belongs to.

    A frozen base model has its own file: the state only remembers which.
    """
    settings = {
        "train_type": config.train.train_type,
        "adapter": dataclasses.asdict(config.adapter),
    }
    return settings if base is None else {**settings, "base": dict(base)}


def require_same_kind(state: dict[str, Any], path: Path, config: ResolvedConfig) -> None:
    """Raises ConfigError when `state` is of a run that trained another part of the model."""
    found, asked = state["train_type"], config.train.train_type
    if found != asked:
        raise ConfigError(
            f"--train_type {asked}: {path} is of a run with --train_type {found}; resume with that,"
            f" or begin anew in another --proj_dir with --load_model"
        )
    if asked != "lora":
        return
    for field in dataclasses.fields(AdapterConfig):
        before, now = state["adapter"][field.name], getattr(config.adapter, field.name)
        # Dropout leaves no trace in the adapters.
        if before != now and field.name != "lora_dropout":
            raise ConfigError(
                f"--{field.name} {now}: the adapters in {path} have {field.name} {before}; resume "
                f"with that, or begin anew in another --proj_dir with --load_model"
            )


def kept_names(names: Iterable[str], config: ResolvedConfig) -> list[str]:
    """Returns the weights that the training state of a run keeps next to a frozen base model."""
    kind, fully = config.train.train_type, listed(config.adapter.lora_train)
    # Adapters themselves are kept, although the checkpoint has them merged in: a merged matrix
    # cannot be taken apart again to the same bits.
    return [name for name in names if is_adapter(name) or learns(name, kind, fully)]


def _trained(weights: Mapping[str, Tensor], config: ResolvedConfig) -> Mapping[str, Tensor]:
    kind, fully = config.train.train_type, listed(config.adapter.lora_train)
    return picked(weights, [name for name in weights if learns(name, kind, fully)])
