"""Plain files of weights by RWKV-LM's names: .pth, which pip's `rwkv` reads, and .safetensors."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from rwkv_train.checkpoint.weights import load_weights, save_weights
from rwkv_train.export.model_source import SourceModel, complete_weights
from rwkv_train.export.target import (
    LARGEST_ERROR,
    ExportOptions,
    ExportTarget,
    TargetLogits,
    Unavailable,
    imported,
)
from rwkv_train.export.targets.package_client import package_logits

_STATE = ".att.time_state"


class _WeightFile(ExportTarget):
    """A dictionary name -> tensor; trained initial states are entries of it like others."""

    holds_states = True

    def refuses(self, model: SourceModel, options: ExportOptions) -> str | None:
        # Names and numbers stay what they are, whatever the model.
        return None

    def write(self, model: SourceModel, options: ExportOptions, path: Path) -> list[str]:
        save_weights(path, {**model.weights, **model.states}, options.dtype)
        return []

    def read_back(self, path: Path) -> dict[str, Tensor]:
        loaded = load_weights(path)
        weights = {key: value for key, value in loaded.items() if not key.endswith(_STATE)}
        return complete_weights(path, weights)[0]


class PthFile(_WeightFile):
    """torch's file, as RWKV-LM saves and as most programs around RWKV read it."""

    name = "pth"
    reader = "RWKV-LM, pip's rwkv, RWKV Runner"
    suffix = ".pth"

    def largest_error(self, model: SourceModel, options: ExportOptions) -> float:
        if model.config.rwkv_version == "7":
            return LARGEST_ERROR
        # Up to RWKV-6 the package rounds the first layer norm's output to the file's format.
        return {"bf16": 3e-2, "fp16": 4e-3}.get(options.precision, LARGEST_ERROR)

    def logits(
        self, path: Path, model: SourceModel, prompts: list[list[int]]
    ) -> list[TargetLogits] | Unavailable:
        missing = imported("rwkv", "export")
        if missing is not None:
            return missing
        reason = super(_WeightFile, self).refuses(model, ExportOptions("fp32"))
        if reason is not None:
            return Unavailable(f"of the rwkv package: {reason}")
        return package_logits(path, model, prompts)


class SafetensorsFile(_WeightFile):
    """The same names and numbers in Hugging Face's format."""

    name = "safetensors"
    reader = "a plain file of weights"
    suffix = ".safetensors"

    def logits(
        self, path: Path, model: SourceModel, prompts: list[list[int]]
    ) -> list[TargetLogits] | Unavailable:
        return Unavailable("no program computes from plain .safetensors but this one")
