"""DeepSpeed for GPUs and for processes on a CPU, and the choice of a Lightning strategy.

Lightning 1.9.5 refuses DeepSpeed on a CPU and passes a device index that a CPU does not have;
`ZeroStrategy` lifts both, so that ZeRO 1, 2 and 3 train, save and resume on a few CPU processes
over gloo exactly as they do on GPUs over NCCL.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.overrides.base import _LightningModuleWrapperBase
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy

from rwkv_train.training.optim.gather_matrices import ZeroMatrices
from rwkv_train.training.optim.muon import MuonWithAdamW

if TYPE_CHECKING:
    from rwkv_train.config.resolved import ResolvedHardware

# name on the command line -> (ZeRO stage, optimizer on the CPU, parameters on the CPU)
ZERO_STAGES = {
    "deepspeed_stage_1": (1, False, False),
    "deepspeed_stage_2": (2, False, False),
    "deepspeed_stage_2_offload": (2, True, False),
    "deepspeed_stage_3": (3, False, False),
    "deepspeed_stage_3_offload": (3, True, True),
}


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeedStrategy that also accepts the CPU accelerator."""

    def __init__(self, *, device_type: str, **options: Any) -> None:
        super().__init__(**options)
        self._device_type = device_type
        if device_type == "cpu":
            self._process_group_backend = "gloo"
            # oneCCL streams and pinned memory do not exist on a CPU.
            self.config["zero_optimization"]["overlap_comm"] = False

    def _init_deepspeed_distributed(self) -> None:
        # DeepSpeed prints that it has built an operator, once per rank.
        with contextlib.redirect_stdout(io.StringIO()):
            super()._init_deepspeed_distributed()

    def init_deepspeed(self) -> None:
        """Builds the engine; Lightning's checks of clipping and accelerator do not apply."""
        model = _LightningModuleWrapperBase(forward_module=self.model)
        self._initialize_deepspeed_train(model)

    def backward(
        self,
        closure_loss: torch.Tensor,
        optimizer: Any,
        optimizer_idx: int | None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Backward pass; Lightning has already divided by the accumulation."""
        return super().backward(
            closure_loss, optimizer, optimizer_idx, *args, scale_wrt_gas=False, **kwargs
        )

    def _setup_model_and_optimizer(
        self, model: torch.nn.Module, optimizer: Any, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        import deepspeed

        index = self.root_device.index
        engine, zero_optimizer, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank if index is None else index),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            dist_init_required=False,
        )
        if isinstance(optimizer, MuonWithAdamW):
            optimizer.zero = ZeroMatrices(engine.optimizer)
        return engine, zero_optimizer


def build_strategy(hardware: ResolvedHardware, *, micro_bsz: int, grad_clip: float) -> Any:
    """Lightning's `strategy` argument for a resolved hardware section.

    micro_bsz: samples per process and forward pass; grad_clip: DeepSpeed's engine clips itself.
    """
    if hardware.strategy in ZERO_STAGES:
        stage, offload_optimizer, offload_parameters = ZERO_STAGES[hardware.strategy]
        strategy = ZeroStrategy(
            device_type=hardware.accelerator,
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            # an element count, in spite of the flag's name (RWKV-LM multiplies by a million too)
            allgather_bucket_size=hardware.ds_bucket_mb * 1_000_000,
            reduce_bucket_size=hardware.ds_bucket_mb * 1_000_000,
            logging_batch_size_per_gpu=micro_bsz,
        )
        strategy.config["gradient_clipping"] = grad_clip
        # Our optimizer may be torch's, or Muon's.
        strategy.config["zero_force_ds_cpu_optimizer"] = False
        return strategy
    if hardware.strategy == "ddp":
        # One forward pass uses every trained parameter, so no search for unused ones.
        return DDPStrategy(find_unused_parameters=False)
    return None


def zero_engine(strategy: Any) -> Any | None:
    """The DeepSpeed engine behind a Lightning strategy, None without DeepSpeed."""
    return strategy.model if isinstance(strategy, ZeroStrategy) else None
