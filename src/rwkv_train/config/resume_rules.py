"""The one table that decides what a change of each setting means to a run that resumes.

Every field of the configuration has a row, which a test holds. Values are compared as they were
resolved, so that a default that is written out is no change. Pure: what a change does to the
samples to come is computed in `training.start.changes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from rwkv_train.command_line import perhaps
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import ConfigError


class Effect(IntEnum):
    """Consequences of a change, the worse the higher.

    NONE: what is learnt stays the same, bit for bit, and nobody need be told. TOLD: so too, but
    people should know. ROUNDING: the same samples and mathematics, summed in another order. COURSE:
    another course from here on, which is often what was meant. REFUSED: only if --accept_changes
    names it. FIXED: never; the state does not fit.
    """

    NONE = 0
    TOLD = 1
    ROUNDING = 2
    COURSE = 3
    REFUSED = 4
    FIXED = 5


def _always(config: ResolvedConfig) -> bool:
    return True


def _samples_at_random(config: ResolvedConfig) -> bool:
    return config.data.sampling == "random"


def _validates(config: ResolvedConfig) -> bool:
    return config.data.val_data_file is not None or config.data.val_split is not None


def _has_muon(config: ResolvedConfig) -> bool:
    return config.optim.optimizer == "muon"


def _has_adapters(config: ResolvedConfig) -> bool:
    return config.train.train_type == "lora"


def _has_zero(config: ResolvedConfig) -> bool:
    return config.hardware.strategy.startswith("deepspeed")


def _follows_mini_epochs(config: ResolvedConfig) -> bool:
    return config.train.exit_tokens <= 0


@dataclass(frozen=True)
class ResumeRule:
    """Meaning of a change of one field.

    says: its effect in words, "" where the caller computes it. applies: whether this run uses the
    field at all; one that does not never counts as changed.
    """

    effect: Effect
    says: str = ""
    applies: Callable[[ResolvedConfig], bool] = _always


_NOTHING = ResumeRule(Effect.NONE)
_OF_THE_WEIGHTS = ResumeRule(Effect.FIXED, "the state's weights have the other shape")
_ADAPTER = ResumeRule(Effect.FIXED, "the state's adapters were made with the other", _has_adapters)
# The caller computes what becomes of the samples.
_SAMPLES = ResumeRule(Effect.REFUSED)
_RATE = ResumeRule(Effect.COURSE)
_BATCH = ResumeRule(Effect.ROUNDING)
_MOMENTS = ResumeRule(Effect.COURSE, "the moments so far were averaged with the other")
_SAME_MATHEMATICS = ResumeRule(Effect.ROUNDING, "the same mathematics, rounded elsewhere")
_MISHAPS = ResumeRule(Effect.TOLD, "counts from the next bad step on")
_VALIDATION = ResumeRule(
    Effect.TOLD, "validation losses cannot be compared with earlier ones", _validates
)
_MUON = ResumeRule(Effect.COURSE, "counts for Muon's matrices from here on", _has_muon)

RULES: Mapping[str, ResumeRule] = {
    # model
    "rwkv_version": ResumeRule(Effect.FIXED, "the state's weights are of the other version"),
    "n_layer": _OF_THE_WEIGHTS,
    "n_embd": _OF_THE_WEIGHTS,
    "dim_att": _OF_THE_WEIGHTS,
    "dim_ffn": _OF_THE_WEIGHTS,
    "vocab_size": _OF_THE_WEIGHTS,
    "head_size": _OF_THE_WEIGHTS,
    "rank_mix": _OF_THE_WEIGHTS,
    "rank_decay": _OF_THE_WEIGHTS,
    "rank_iclr": _OF_THE_WEIGHTS,
    "rank_value": _OF_THE_WEIGHTS,
    "rank_gate": _OF_THE_WEIGHTS,
    "head_qk": _OF_THE_WEIGHTS,
    "head_size_divisor": ResumeRule(
        Effect.REFUSED, "another group norm: the trained weights compute something else"
    ),
    "dropout": ResumeRule(Effect.COURSE, "counts from here on"),
    # data
    "data_file": _SAMPLES,
    "mix_tokens": _SAMPLES,
    "data_type": ResumeRule(Effect.REFUSED, "the file is read as other tokens"),
    "ctx_len": _SAMPLES,
    "magic_prime": _SAMPLES,
    "sampling": _SAMPLES,
    "sample_offset": _SAMPLES,
    "loss_mask": ResumeRule(Effect.REFUSED, "other targets count in the loss"),
    "reset_at_documents": ResumeRule(
        Effect.REFUSED, "what a sample reads before a document's start counts, or no longer does"
    ),
    "val_data_file": _VALIDATION,
    "val_split": ResumeRule(Effect.FIXED, "what was held out would be trained on, or the reverse"),
    "val_samples": _VALIDATION,
    "val_ctx_len": _VALIDATION,
    "tokenizer": ResumeRule(
        Effect.TOLD, "the tokens stay those of the data; bits per byte may differ", _validates
    ),
    "num_workers": _NOTHING,
    # optim
    "lr_init": _RATE,
    "lr_final": _RATE,
    "warmup_steps": _RATE,
    "beta1": _MOMENTS,
    "beta2": _MOMENTS,
    "adam_eps": ResumeRule(Effect.COURSE, "counts from here on"),
    "weight_decay": ResumeRule(Effect.COURSE, "counts from here on"),
    "weight_decay_final": ResumeRule(Effect.COURSE, "the decay's curve is another from here on"),
    "grad_clip": ResumeRule(Effect.COURSE, "counts from here on"),
    "layerwise_lr": ResumeRule(Effect.COURSE, "some groups have another rate from here on"),
    "special_lr_factor": ResumeRule(
        Effect.COURSE, "the special groups have another rate from here on"
    ),
    "hold_epochs": _RATE,
    "optimizer": ResumeRule(Effect.COURSE, "the moments start empty"),
    "muon_lr": _MUON,
    "muon_momentum": _MUON,
    "muon_nesterov": _MUON,
    "muon_adjust_lr": _MUON,
    # train
    "proj_dir": _NOTHING,
    # Of a frozen base model the state holds a checksum, which is compared.
    "load_model": _NOTHING,
    "load_partial": _NOTHING,
    "train_stage": _NOTHING,
    "micro_bsz": _BATCH,
    "accumulate_grad_batches": _BATCH,
    # What follows from it is compared.
    "global_batch_size": _NOTHING,
    "exit_tokens": _RATE,
    # They end a start, and the next one resumes there.
    "max_steps": _NOTHING,
    "exit_epoch": _NOTHING,
    "epoch_steps": ResumeRule(
        Effect.TOLD, "files are numbered by the new mini-epochs from here on"
    ),
    "epoch_count": ResumeRule(_RATE.effect, "", _follows_mini_epochs),
    "epoch_begin": _NOTHING,
    "epoch_save": _NOTHING,
    "val_every": _NOTHING,
    "save_best": _NOTHING,
    "save_fp32": ResumeRule(Effect.TOLD, "the format of rwkv-N.pth changes, training does not"),
    "train_type": ResumeRule(Effect.FIXED, "another part of the model was trained"),
    "random_seed": ResumeRule(
        Effect.REFUSED, "samples lie at other random positions", _samples_at_random
    ),
    "plan": _NOTHING,
    "grad_cp": _SAME_MATHEMATICS,
    "chunk_len": _SAME_MATHEMATICS,
    "bptt_chunks": ResumeRule(Effect.COURSE, "gradients reach another distance from here on"),
    "accept_changes": _NOTHING,
    # adapter
    "lora_r": _ADAPTER,
    "lora_alpha": _ADAPTER,
    "lora_dropout": ResumeRule(Effect.COURSE, "counts from here on", _has_adapters),
    "lora_targets": _ADAPTER,
    "lora_init": _ADAPTER,
    "lora_dora": _ADAPTER,
    "lora_train": _ADAPTER,
    # safety
    "save_every_steps": _NOTHING,
    "save_every_minutes": _NOTHING,
    "save_in_background": _NOTHING,
    "state_format": _NOTHING,
    "save_retry_seconds": _NOTHING,
    "keep_last": _NOTHING,
    "keep_every": _NOTHING,
    "keep_last_weights": _NOTHING,
    "state_copies": _NOTHING,
    "copies_wait_minutes": _NOTHING,
    "on_bad_step": _MISHAPS,
    "spike_sigma": ResumeRule(
        Effect.COURSE, "other steps are spikes, which are skipped, from here on"
    ),
    "bad_steps_before_rollback": _MISHAPS,
    "max_rollbacks": _MISHAPS,
    # hardware
    "accelerator": _SAME_MATHEMATICS,
    "devices": _BATCH,
    "num_nodes": _BATCH,
    "context_parallel": _BATCH,
    "dist_timeout": _NOTHING,
    "hang_timeout": _NOTHING,
    "precision": ResumeRule(
        Effect.COURSE, "steps are computed in it from here on; the state is fp32 in any case"
    ),
    "autocast": ResumeRule(
        Effect.ROUNDING, "weights are rounded elsewhere; the state has their fp32 values"
    ),
    "strategy": _SAME_MATHEMATICS,
    "ds_bucket_mb": ResumeRule(Effect.ROUNDING, "gradients are summed in other buckets", _has_zero),
    "wkv_backend": _SAME_MATHEMATICS,
    "head_chunk": _SAME_MATHEMATICS,
    "compile": _SAME_MATHEMATICS,
    "keep_heap": _NOTHING,
    "skip_memory_check": _NOTHING,
    # log
    "wandb": _NOTHING,
    "wandb_mode": _NOTHING,
    "tensorboard": _NOTHING,
    "run_name": _NOTHING,
    "profile": _NOTHING,
    "measure_rate": _NOTHING,
    "enable_progress_bar": _NOTHING,
    "plot": _NOTHING,
    "report": _NOTHING,
    "eval_tasks": _NOTHING,
    "eval_include": _NOTHING,
    "eval_limit": _NOTHING,
    "sample_every": _NOTHING,
    "sample_prompts": _NOTHING,
    "sample_tokens": _NOTHING,
}
# The state of another run than the folder's.
OTHER_RUN = "run"
# What --accept_changes may name.
ACCEPTABLE = (*(name for name, rule in RULES.items() if rule.effect is Effect.REFUSED), OTHER_RUN)


def check_accepted(accepted: tuple[str, ...]) -> None:
    """Raises ConfigError for a name in --accept_changes that stands for nothing to accept."""
    for name in accepted:
        rule = RULES.get(name)
        if name not in ACCEPTABLE:
            why = (
                f"is no setting{perhaps(name, ACCEPTABLE)}"
                if rule is None
                else f"never can: {rule.says}"
                if rule.effect is Effect.FIXED
                else "need not be accepted"
            )
            raise ConfigError(
                f"--accept_changes {name}: {name} {why}; expected some of {', '.join(ACCEPTABLE)}"
            )
