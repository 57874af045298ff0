"""Whether the operators can be served as `--wkv_backend` asks, before anything is written."""

from __future__ import annotations

import importlib

import torch

from rwkv_train.config.schema import RunConfig
from rwkv_train.ops.backends.dispatch import AUTO, Call, choose

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_backend(config: RunConfig) -> None:
    """Builds and loads the kernels that a run asks for by name; raises BackendError if it cannot.

    config: complete. With "auto" there is always a backend, and nothing is done.
    """
    name, model = config.hardware.wkv_backend, config.model
    if name == AUTO or config.train.train_stage == 1:
        return
    op = f"wkv{model.rwkv_version}"
    has_heads = model.head_size is not None and op != "wkv4"
    size = model.head_size if has_heads else 1
    call = Call(
        op=op,
        device=torch.device("cuda" if config.hardware.accelerator == "gpu" else "cpu"),
        dtype=_DTYPES.get(config.hardware.precision, torch.float32),
        batch=1,
        time=1,
        heads=model.dim_att // size,
        head_size=size,
        needs_grad=True,
        has_state=False,
        has_reset=False,
    )
    choose(importlib.import_module(f"rwkv_train.ops.{op}").BACKENDS, name, call)
