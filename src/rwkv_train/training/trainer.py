"""Lightning's Trainer for one run, with everything off that the project does itself."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.training.distributed.strategy import ZERO_STAGES, build_strategy

LIGHTNING_PRECISION = {"fp32": 32, "tf32": 32, "bf16": "bf16", "fp16": 16}


def build_trainer(config: ResolvedConfig, callbacks: list[pl.Callback]) -> pl.Trainer:
    """A Trainer that runs through the loader once: mini-epochs, logs and checkpoints are ours."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        # Its lines about TPUs and IPUs; importing it has just set the level back.
        logging.getLogger(name).setLevel(logging.ERROR)
    hardware, train = config.hardware, config.train
    strategy = build_strategy(hardware, micro_bsz=train.micro_bsz, grad_clip=config.optim.grad_clip)
    options: dict[str, Any] = {} if strategy is None else {"strategy": strategy}
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        precision=LIGHTNING_PRECISION[hardware.precision],
        accumulate_grad_batches=train.accumulate_grad_batches,
        # Only DeepSpeed needs the value; elsewhere the module clips and keeps the norm.
        gradient_clip_val=config.optim.grad_clip if hardware.strategy in ZERO_STAGES else None,
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        replace_sampler_ddp=False,
        **options,
    )
