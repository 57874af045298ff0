"""All targets of an export: the one table of them."""

from __future__ import annotations

from rwkv_train.errors import ConfigError
from rwkv_train.export.target import ExportTarget
from rwkv_train.export.targets.plain_weights import PthFile, SafetensorsFile
from rwkv_train.export.targets.transformers_rwkv4 import TransformersFolder

_ALL: tuple[ExportTarget, ...] = (PthFile(), SafetensorsFile(), TransformersFolder())
TARGETS: dict[str, ExportTarget] = {target.name: target for target in _ALL}


def target_named(name: str) -> ExportTarget:
    """Returns the target of that name; raises ConfigError when there is none."""
    if name not in TARGETS:
        raise ConfigError(f"--to {name} is not known; choose from {', '.join(TARGETS)}")
    return TARGETS[name]
