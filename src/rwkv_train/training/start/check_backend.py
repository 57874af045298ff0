"""Whether the operators can be served as `--wkv_backend` asks, before anything is written."""

from __future__ import annotations

import importlib

import torch

from rwkv_train.checkpoint.number_formats import DTYPES
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.versions import VERSIONS
from rwkv_train.ops.backends.dispatch import AUTO, Call, choose


def check_backend(config: ResolvedConfig) -> None:
    """Builds and loads the kernels that a run asks for by name; raises BackendError if it cannot.

    config: complete. With "auto" there is always a backend, and nothing is done.
    """
    name, model = config.hardware.wkv_backend, config.model
    if name == AUTO or config.train.train_stage == 1:
        return
    op = VERSIONS[model.rwkv_version].operator
    # An operator without heads counts channels.
    size = model.head_size or 1
    call = Call(
        op=op,
        device=torch.device("cuda" if config.hardware.accelerator == "gpu" else "cpu"),
        dtype=DTYPES[config.hardware.precision],
        batch=1,
        time=1,
        heads=model.dim_att // size,
        head_size=size,
        needs_grad=True,
        has_state=False,
        has_reset=False,
    )
    choose(importlib.import_module(f"rwkv_train.ops.{op}").BACKENDS, name, call)
