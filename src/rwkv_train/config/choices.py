"""The choices of fields whose values more than one file names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from rwkv_train.config.versions import VERSIONS

if TYPE_CHECKING:
    VersionName: TypeAlias = str
else:
    # The table's names, so that a new row is a new choice; a type checker wants them spelled out.
    VersionName = Literal[tuple(VERSIONS)]

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "muon", "adam8bit"]
# What auto can become.
Accelerator = Literal["cpu", "gpu"]
ResolvedStrategy = Literal[
    "single_device",
    "ddp",
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3",
    "deepspeed_stage_3_offload",
]
Strategy = Literal["auto", ResolvedStrategy]
BackendName = Literal[
    "auto",
    "native",
    "chunked",
    "reference",
    "native:scan",
    "native:wide",
    "native:chunks",
    "native:segments",
]
