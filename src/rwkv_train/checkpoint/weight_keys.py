"""Names of tensors without what wrappers have put around the model, and the models inside files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from rwkv_train.errors import CheckpointError

# Left anywhere in a name by torch.compile, DeepSpeed, DistributedDataParallel, FSDP and activation
# checkpointing, which wrap a model or a layer of it; RWKV has no parts of these names.
_WRAPPERS = {
    "_orig_mod",
    "_forward_module",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
# Keys under which trainers keep the weights next to other things.
_NESTS = ("state_dict", "model_state_dict", "model", "module", "weights", "params", "network")
_LAYER = re.compile(r"(?:^|(?<=\.))(?:blocks|layers)\.\d+\.")
_ADAPTER = re.compile(r".*\.(lora_[AB]|lora_magnitude_vector)(\.\w+)*")

_Entry = TypeVar("_Entry")


def without_wrappers(path: Path, entries: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """Returns `entries` by the names that the model itself gives its tensors.

    Raises CheckpointError when that makes two names one, or when there are two models.
    """
    cleaned: dict[str, _Entry] = {}
    prefix = _model_prefix(path, [_without_parts(key) for key in entries])
    for key, value in entries.items():
        name = _without_parts(key)
        name = name.removeprefix(prefix)
        if name in cleaned:
            raise CheckpointError(f"{path} holds {name} twice, the second time as {key}")
        cleaned[name] = value
    return cleaned


def find_model(content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Returns the mapping of an RWKV model that a trainer has nested in others, else `content`."""
    inner = content
    for _ in _NESTS:
        found = [inner[key] for key in _NESTS if isinstance(inner.get(key), Mapping)]
        if len(found) != 1 or any(isinstance(value, Tensor) for value in inner.values()):
            break
        inner = found[0]
    if all(isinstance(value, Tensor) for value in inner.values()) and any(
        isinstance(key, str) and _LAYER.search(key) for key in inner
    ):
        return inner
    return content


def is_adapter_file(names: Mapping[str, object]) -> bool:
    """Tells whether these are the tensors of an adapter, which is no model."""
    return any(_ADAPTER.fullmatch(name) for name in names) and "emb.weight" not in names


def _without_parts(key: str) -> str:
    name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    # A LightningModule's, also before names that are not in a layer.
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return name


def _model_prefix(path: Path, names: list[str]) -> str:
    """Returns what stands before the layers' names, such as `student.`."""
    matches = [(name, _LAYER.search(name)) for name in names]
    found = list(dict.fromkeys(name[: match.start()] for name, match in matches if match))
    # transformers' own, which `hf_names` knows.
    found = [prefix.removesuffix("rwkv.") for prefix in found]
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds {len(found)} models, under {', '.join(repr(p) for p in found[:4])}; "
            f"save the one that is to be trained alone"
        )
    return found[0] if found else ""
