"""Lightning's Trainer for one run, with everything off that the project does itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import ClusterEnvironment
from pytorch_lightning.strategies.strategy import Strategy

from rwkv_train.config.resolved import ResolvedConfig, ResolvedHardware
from rwkv_train.processors import usable_processors
from rwkv_train.training.distributed.strategy import ZERO_STAGES
from rwkv_train.training.fp32_products import choose_fp32_products

LIGHTNING_PRECISION: Mapping[str, Literal[32, 16, "bf16"]] = {
    "fp32": 32,
    "tf32": 32,
    "bf16": "bf16",
    "fp16": 16,
}


def build_trainer(
    config: ResolvedConfig,
    strategy: Strategy | None,
    environment: ClusterEnvironment,
    callback: pl.Callback,
) -> pl.Trainer:
    """Returns a Trainer that runs through the loader once.

    Mini-epochs, logs and checkpoints are the callback's. strategy: None for Lightning's own of a
    single process; environment: who the processes are.
    """
    for name in ("pytorch_lightning", "lightning_fabric"):
        # Its lines about TPUs and IPUs; importing it has just set the level back.
        logging.getLogger(name).setLevel(logging.ERROR)
    hardware, train = config.hardware, config.train
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        # Weights in bf16 need no autocast, nor does DeepSpeed, which rounds them itself.
        precision=32 if hardware.keeps_masters else LIGHTNING_PRECISION[hardware.precision],
        accumulate_grad_batches=train.accumulate_grad_batches,
        # Only DeepSpeed needs the value; elsewhere the module clips and keeps the norm.
        gradient_clip_val=config.optim.grad_clip if hardware.strategy in ZERO_STAGES else None,
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        # Our sampler knows the ranks; Lightning's would number the samples anew.
        replace_sampler_ddp=False,
        strategy=strategy,
        plugins=[environment],
    )


def set_up_torch(hardware: ResolvedHardware) -> list[tuple[str, str]]:
    """Sets who computes fp32 products, how exactly, and the number of threads of this process.

    Returns the header's lines about it.
    """
    if hardware.accelerator == "gpu":
        # RWKV-LM: TF32 everywhere but in fp32 mode.
        torch.set_float32_matmul_precision("highest" if hardware.precision == "fp32" else "high")
        torch.backends.cudnn.benchmark = True
        return []
    if hardware.devices > 1:
        # Each process would otherwise start a thread per core.
        torch.set_num_threads(max(1, usable_processors() // hardware.devices))
    chosen = choose_fp32_products()
    return [] if chosen is None else [("products", chosen)]
