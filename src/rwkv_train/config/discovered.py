"""Plain values that a run discovers on disk and in the machine; `training` gathers them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rwkv_train.config.choices import OptimizerName
from rwkv_train.config.schema import ModelConfig


@dataclass(frozen=True)
class DataDiscovered:
    """The training data.

    token_count: tokens, without the held-out ones; held_out_tokens: those that --val_split keeps
        from training.
    best_prime: largest magic prime for token_count at the given ctx_len; None where there is none.
    vocab_size: rows the data's ids need (manifest, or characters counted); None if unknown.
    tokenizer: the tokenizer the manifest names; None if unknown.
    has_loss_mask: whether there is a mask next to the data; supervised_tokens: those it counts,
        None if unknown.
    """

    token_count: int
    held_out_tokens: int = 0
    best_prime: int | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None
    has_loss_mask: bool = False
    supervised_tokens: int | None = None


@dataclass(frozen=True)
class StateDiscovered:
    """The run that wrote the state from which this one resumes.

    optimizer: whose moments the state holds.
    warmup_steps: as the state stores them, -1 for none; None: an old state does not tell.
    config: leaf name -> value of that run's configuration.
    batch_samples: samples that a step of it read; None: an old state does not tell.
    """

    optimizer: OptimizerName = "adamw"
    warmup_steps: int | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    batch_samples: int | None = None


@dataclass(frozen=True)
class StartDiscovered:
    """The starting point of the run.

    path: the file started from; None when fresh.
    epoch: the mini-epoch that file was saved after; None for initial or given weights.
    model: version and sizes read from that file's shapes; None when fresh.
    donor_model: those of the smaller model that stage 1 makes a larger one of; None without one.
    state: what an exact resumption knows besides; None when only weights are there.
    """

    path: str | None = None
    epoch: int | None = None
    model: ModelConfig | None = None
    donor_model: ModelConfig | None = None
    state: StateDiscovered | None = None

    @property
    def kind(self) -> Literal["fresh", "weights", "state"]:
        """Fresh weights, a file of weights with an empty optimizer, or an exact state."""
        if self.path is None:
            return "fresh"
        return "weights" if self.state is None else "state"


@dataclass(frozen=True)
class MachineDiscovered:
    """The machine.

    gpu_count, gpu_has_bf16: CUDA devices, and whether all of them compute in bf16.
    gpu_name: of the oldest of them, with its compute capability, for messages.
    gpu_fault: why a card that is there cannot be used, and what to do; None without such a card.
    no_gpu: why there is none, where that was found out.
    has_bitsandbytes: whether the library of the 8-bit optimizer is installed.
    """

    gpu_count: int = 0
    gpu_has_bf16: bool = False
    gpu_name: str | None = None
    gpu_fault: str | None = None
    no_gpu: str | None = None
    has_bitsandbytes: bool = False


@dataclass(frozen=True)
class Discovered:
    """Everything `resolve` may know besides the configuration; data: None at stage 1 without.

    keeps_batch: whether the launcher may start the run with other processes than before.
    """

    data: DataDiscovered | None = None
    start: StartDiscovered = StartDiscovered()
    machine: MachineDiscovered = MachineDiscovered()
    keeps_batch: bool = False
