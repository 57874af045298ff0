"""DeepSpeed for GPUs and for processes on a CPU, and the choice of a Lightning strategy.

Lightning 1.9.5 refuses DeepSpeed on a CPU and passes a device index that a CPU does not have;
`ZeroStrategy` lifts both, so that ZeRO 1, 2 and 3 train, save and resume on a few CPU processes
over gloo exactly as they do on GPUs over NCCL.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.overrides.base import (
    _LightningModuleWrapperBase,
    _LightningPrecisionModuleWrapperBase,
)
from pytorch_lightning.strategies.deepspeed import DeepSpeedStrategy
from pytorch_lightning.strategies.strategy import Strategy

from rwkv_train.config.resolved import ResolvedHardware
from rwkv_train.training.distributed.bucket_order import DataParallelStrategy
from rwkv_train.training.distributed.faults_alone import LeavesFaultsAlone
from rwkv_train.training.optim.gather_matrices import ZeroMatrices
from rwkv_train.training.optim.muon import MuonWithAdamW

# name on the command line -> (ZeRO stage, optimizer on the CPU, parameters on the CPU)
ZERO_STAGES = {
    "deepspeed_stage_1": (1, False, False),
    "deepspeed_stage_2": (2, False, False),
    "deepspeed_stage_2_offload": (2, True, False),
    "deepspeed_stage_3": (3, False, False),
    "deepspeed_stage_3_offload": (3, True, True),
}


class ZeroStrategy(LeavesFaultsAlone, DeepSpeedStrategy):
    """DeepSpeedStrategy that also accepts the CPU accelerator."""

    def __init__(self, *, device_type: str, **options: Any) -> None:
        super().__init__(**options)
        self._device_type = device_type
        self._accumulates_apart = False
        if device_type == "cpu":
            self._process_group_backend = "gloo"
            # oneCCL streams and pinned memory do not exist on a CPU.
            self.settings["zero_optimization"]["overlap_comm"] = False

    def sum_in_fp32(self) -> None:
        """Lets ranks and micro batches add up in fp32, not rounded to bf16 after each of them.

        Takes twice the memory and traffic for gradients, of which a GPU has less to spare.
        """
        self.settings["communication_data_type"] = "fp32"
        if self.settings["zero_optimization"]["stage"] > 1:
            self.settings["data_types"] = {"grad_accum_dtype": "fp32"}
        else:
            # Asked by its setting, DeepSpeed takes another optimizer for stage 1, which has no
            # place for the step veto.
            self._accumulates_apart = True

    @property
    def settings(self) -> dict[str, Any]:
        """DeepSpeed's configuration; Lightning adds to it until the engine is built."""
        assert self.config is not None, "Lightning makes one from the options"
        return self.config

    def _init_deepspeed_distributed(self) -> None:
        # DeepSpeed prints that it has built an operator, once per rank.
        with contextlib.redirect_stdout(io.StringIO()):
            super()._init_deepspeed_distributed()

    def _set_node_environment_variables(self) -> None:
        # They would stay for whatever this process does next; `Ranks` sets them for its time.
        pass

    def init_deepspeed(self) -> None:
        """Builds the engine; Lightning's checks of clipping and accelerator do not apply.

        Collective: every rank takes its shard of the parameters.
        """
        wrapped = (pl.LightningModule, _LightningPrecisionModuleWrapperBase)
        assert isinstance(self.model, wrapped), "Lightning has attached it"
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
        """Runs the backward pass. Collective under ZeRO, which reduces gradients on the way."""
        # Lightning has already divided by the accumulation; DeepSpeed must not divide again.
        return super().backward(
            closure_loss, optimizer, optimizer_idx, *args, scale_wrt_gas=False, **kwargs
        )

    def batch_to_device(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """Moves a batch to its device as it is.

        Lightning's own rounds every float in it to the precision of the model: weights of a loss
        mask would lose their last digits in bf16, and large ones become infinite in fp16.
        """
        return Strategy.batch_to_device(self, batch, device, dataloader_idx)

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
        if self._accumulates_apart:
            _accumulate_in_fp32(engine.optimizer)
        # Only now are the parameters cut into partitions, and it is known how.
        if isinstance(optimizer, MuonWithAdamW):
            optimizer.zero = ZeroMatrices(engine.optimizer)
        return engine, zero_optimizer


def build_strategy(
    hardware: ResolvedHardware, *, micro_bsz: int, grad_clip: float
) -> Strategy | None:
    """Returns Lightning's `strategy` argument for a resolved hardware section, None for its own.

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
        strategy.settings["gradient_clipping"] = grad_clip
        # Our optimizer may be torch's, or Muon's.
        strategy.settings["zero_force_ds_cpu_optimizer"] = False
        # It waits for the device twice a step, and nobody reads what it measures.
        strategy.settings["timers"] = {"throughput": {"enabled": False}}
        if hardware.precision == "bf16":
            # Thirteen launches per tensor to find what is not finite; the norm, which the step veto
            # looks at on every step, is not finite then either.
            strategy.settings["bf16"] = {"enabled": True, "check_grad_overflow": False}
            if hardware.accelerator == "cpu":
                strategy.sum_in_fp32()
        return strategy
    if hardware.strategy == "ddp":
        return DataParallelStrategy()
    return None


def _accumulate_in_fp32(zero: Any) -> None:
    """Gives every parameter of ZeRO 1 an fp32 sum of its gradients, which the ranks then add up.

    zero: DeepSpeed's optimizer of stage 1, before its first backward pass.
    """
    for name in ("gradient_accumulation_dtype", "use_separate_grad_accum"):
        assert hasattr(zero, name), f"DeepSpeed's ZeRO optimizer has no {name} any more"
    zero.gradient_accumulation_dtype = torch.float32
    zero.use_separate_grad_accum = zero.use_grad_accum_attribute = True


def deepspeed_config(strategy: Strategy | None) -> dict[str, Any] | None:
    """Returns DeepSpeed's configuration, None without DeepSpeed."""
    return strategy.settings if isinstance(strategy, ZeroStrategy) else None


def zero_engine(strategy: Strategy) -> Any | None:
    """Returns the DeepSpeed engine behind a strategy that is set up, None without DeepSpeed."""
    return strategy.model if isinstance(strategy, ZeroStrategy) else None


def release_engine(strategy: Strategy) -> None:
    """Lets go of what DeepSpeed has made for a run that is over; nothing without DeepSpeed.

    Its hooks on the gradients, which the garbage collector does not see through, would otherwise
    keep model, optimizer and process groups with their threads for as long as the process lives.
    """
    engine = zero_engine(strategy)
    if engine is not None:
        engine.destroy()
        _forget_stage_3()


def _forget_stage_3() -> None:
    """Empties what ZeRO 3 keeps outside of its engine, and takes its product out of torch again."""
    from deepspeed.runtime.zero import linear, parameter_offload, partition_parameters
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    # A cache of a method, by its instances; another function is wrapped around it.
    released = vars(PartitionedParameterCoordinator)[
        "_PartitionedParameterCoordinator__params_to_release"
    ]
    for cell in released.__closure__ or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()
    # Whatever the process does next would multiply by it.
    if torch.nn.functional.linear is linear.zero3_linear_wrap:
        patched = partition_parameters.InsertPostInitMethodToModuleSubClasses
        torch.nn.functional.linear = patched.linear_bk
