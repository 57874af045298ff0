"""What a run finds on disk and in the machine, as plain values; `training` gathers them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rwkv_train.config.schema import ModelConfig


@dataclass(frozen=True)
class Discovered:
    """Everything `resolve` may know besides the configuration.

    token_count: tokens in the training data, without the held-out ones; None only at stage 1
        without data.
    held_out_tokens: tokens that --val_split keeps from training.
    best_prime: largest magic prime for token_count at the given ctx_len; None where there is none.
    data_vocab_size: rows the data's ids need (manifest, or characters counted); None if unknown.
    data_tokenizer: the tokenizer the manifest names; None if unknown.
    has_loss_mask: whether there is a mask beside the data; supervised_tokens: those it counts,
        None if unknown.
    start: "fresh" weights, a file of "weights" with an empty optimizer, or an exact "state".
    start_path: the file started from; None when fresh.
    start_epoch: the mini-epoch that file was saved after; -1 for initial or given weights.
    start_model: version and sizes read from that file's shapes; None when fresh.
    donor_model: those of the smaller model that stage 1 makes a larger one of; None without one.
    state_warmup_steps: warmup of the run that wrote the state; None without one.
    state_optimizer: the optimizer whose moments it holds; None without one.
    has_bitsandbytes: whether the library of the 8-bit optimizer is installed.
    state_config: leaf name -> value of the configuration of that run; empty without one.
    gpu_count, gpu_has_bf16: CUDA devices of this machine, and whether all of them compute in bf16.
    """

    token_count: int | None = None
    held_out_tokens: int = 0
    best_prime: int | None = None
    data_vocab_size: int | None = None
    data_tokenizer: str | None = None
    has_loss_mask: bool = False
    supervised_tokens: int | None = None
    start: Literal["fresh", "weights", "state"] = "fresh"
    start_path: str | None = None
    start_epoch: int = -1
    start_model: ModelConfig | None = None
    donor_model: ModelConfig | None = None
    state_warmup_steps: int | None = None
    state_optimizer: str | None = None
    has_bitsandbytes: bool = False
    state_config: Mapping[str, object] = field(default_factory=dict)
    gpu_count: int = 0
    gpu_has_bf16: bool = False
