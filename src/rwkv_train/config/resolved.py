"""The configuration of a run once nothing is left open: the schema's sections with narrower types.

A section here redeclares the fields that `resolve` fills.  Where a field may still be None, None is
the answer and not a question: no limit, no validation, no mixture.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from rwkv_train.config.choices import Accelerator, OptimizerName, Precision, ResolvedStrategy
from rwkv_train.config.machine_schema import HardwareConfig
from rwkv_train.config.rwkv_lm.warmup import stored_warmup
from rwkv_train.config.schema import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from rwkv_train.config.sections import Section
from rwkv_train.config.versions import VERSIONS

# Sizes that not every version has; the schema's default of all of them is None.
SPECIFIC_SIZES = ("head_size", "rank_mix", "rank_decay", "rank_iclr", "rank_value", "rank_gate")


# field() takes away the default: a bare annotation would inherit that of the schema's class.
# kw_only, because a field without a default may not stand behind one that has it.
@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelConfig):
    """Shape and architecture of the network; a size that the version does not have is 0."""

    rwkv_version: str = field()
    n_layer: int = field()
    n_embd: int = field()
    dim_att: int = field()
    dim_ffn: int = field()
    vocab_size: int = field()
    head_size: int = field()
    rank_mix: int = field()
    rank_decay: int = field()
    rank_iclr: int = field()
    rank_value: int = field()
    rank_gate: int = field()

    def as_given(self) -> ModelConfig:
        """Returns the section as a user would write it: a size that does not exist is None."""
        # `check_version` takes the 0 of a size that does not exist for one that was asked for.
        row = VERSIONS[self.rwkv_version]
        return ModelConfig(**_values(self) | {n: None for n in SPECIFIC_SIZES if not row.has(n)})


@dataclass(frozen=True, kw_only=True)
class ResolvedData(DataConfig):
    """Sources of the tokens and the order of reading them.

    val_ctx_len: of the validation, if there is one.
    """

    sampling: Literal["permutation", "random"] = field()
    val_ctx_len: int = field()

    def as_given(self) -> DataConfig:
        """Returns the section as a user would write it: no length of a validation without one."""
        # `check_validation` refuses a val_ctx_len with nothing to validate on.
        validates = self.val_data_file is not None or self.val_split is not None
        length = {"val_ctx_len": self.val_ctx_len if validates else None}
        return DataConfig(**_values(self) | length)


@dataclass(frozen=True, kw_only=True)
class ResolvedOptim(OptimConfig):
    """Optimizer and schedule.

    warmup_steps: None: no warmup, whose curve is not that of 0 steps (`training.optim.schedule`).
    muon_lr: None without Muon.
    """

    adam_eps: float = field()
    optimizer: OptimizerName = field()

    @property
    def muon_factor(self) -> float:
        """Rate of Muon's matrices over the base rate; 1 without Muon."""
        return 1.0 if self.muon_lr is None else self.muon_lr / self.lr_init


@dataclass(frozen=True, kw_only=True)
class ResolvedTrain(TrainConfig):
    """One run; epoch_count is the length of a step-based schedule, None with a token budget."""

    exit_tokens: int = field()
    epoch_steps: int = field()
    epoch_begin: int = field()
    random_seed: int = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedHardware(HardwareConfig):
    """Devices, precision and strategy of the run.

    autocast: None in fp32 and tf32, which round no weights.
    """

    accelerator: Accelerator = field()
    devices: int = field()
    num_nodes: int = field()
    precision: Precision = field()
    strategy: ResolvedStrategy = field()

    @property
    def keeps_masters(self) -> bool:
        """Tells whether our own optimizer keeps the fp32 masters of bf16 weights."""
        return self.autocast is False and not self.strategy.startswith("deepspeed")


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(RunConfig):
    """Everything a run needs, as `resolve` returns it."""

    model: ResolvedModel = field()
    data: ResolvedData = field()
    optim: ResolvedOptim = field()
    train: ResolvedTrain = field()
    hardware: ResolvedHardware = field()

    def as_given(self) -> RunConfig:
        """Returns the configuration as a user would write it, which resolves to this one."""
        # Files keep this form: older ones must be readable, and RWKV-LM's -1 is what they hold.
        warmup = {"warmup_steps": stored_warmup(self.optim.warmup_steps)}
        return RunConfig(
            model=self.model.as_given(),
            data=self.data.as_given(),
            optim=OptimConfig(**_values(self.optim) | warmup),
            train=TrainConfig(**_values(self.train)),
            adapter=self.adapter,
            safety=self.safety,
            hardware=HardwareConfig(**_values(self.hardware)),
            log=self.log,
        )


def not_narrowed(given: Section, kind: type[Section]) -> dict[str, Any]:
    """Returns the fields of `given` that the resolved section `kind` does not redeclare."""
    # The redeclared ones are then passed by name, so that the type checker sees each of them.
    return {k: v for k, v in _values(given).items() if k not in kind.__annotations__}


def _values(section: Section) -> dict[str, Any]:
    return {entry.name: getattr(section, entry.name) for entry in dataclasses.fields(section)}
