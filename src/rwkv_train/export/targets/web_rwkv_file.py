"""All four versions as .st, which web-rwkv and the server Ai00 read, and trained states for them.

The names are those of `checkpoint/web_rwkv_names.py`, which reads such files too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rwkv_train.checkpoint.web_rwkv_names import to_web_rwkv
from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.target import ExportOptions, ExportTarget, TargetLogits, Unavailable


class WebRwkvFile(ExportTarget):
    """A file of fp16; the format has no other numbers."""

    name = "web-rwkv"
    reader = "web-rwkv, Ai00"
    suffix = ".st"
    precisions = ("fp16",)

    def refuses(self, model: SourceModel, options: ExportOptions) -> str | None:
        config = model.config
        if config.dim_att != config.n_embd:
            return f"web-rwkv takes --dim_att ({config.dim_att}) to be --n_embd ({config.n_embd})"
        return super().refuses(model, options)

    def write(self, model: SourceModel, options: ExportOptions, path: Path) -> list[str]:
        save_weights(path, to_web_rwkv(model.weights), torch.float16)
        remarks = []
        if model.config.n_layer < 6:
            remarks.append("web-rwkv 0.8 divides by zero for models of fewer than 6 layers")
        return remarks

    def logits(
        self, path: Path, model: SourceModel, prompts: list[list[int]]
    ) -> list[TargetLogits] | Unavailable:
        return Unavailable("web-rwkv computes on a GPU (Vulkan) only")

    def write_states(self, states: Mapping[str, Tensor], path: Path) -> list[tuple[Path, str]]:
        # RWKV-4's are two vectors a layer, of which only this program knows.
        if any(value.dim() != 3 for value in states.values()):
            return super().write_states(states, path)
        # Ai00 takes only this ending for a state, and only this content.
        file = path.with_suffix(".state")
        save_weights(file, to_web_rwkv(states), torch.float16)
        return [(file, "trained initial states, which Ai00 loads as a state")]
