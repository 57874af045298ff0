"""What a change of each setting means to a run that resumes: the one table that decides.

Every field of the configuration has a row, which a test holds. Values are compared as they were
resolved, so that a default that is written out is no change. Pure: what a change does to the
samples to come is computed in `training.start.changes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

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
class Rule:
    """Meaning of a change of one field.

    says: its effect in words, "" where the caller computes it. applies: whether this run uses the
    field at all; one that does not never counts as changed.
    """

    effect: Effect
    says: str = ""
    applies: Callable[[ResolvedConfig], bool] = _always


_NOTHING = Rule(Effect.NONE)
_OF_THE_WEIGHTS = Rule(Effect.FIXED, "the state's weights have the other shape")
_ADAPTER = Rule(Effect.FIXED, "the state's adapters were made with the other", _has_adapters)
# The caller computes what becomes of the samples.
_SAMPLES = Rule(Effect.REFUSED)
_RATE = Rule(Effect.COURSE)
_BATCH = Rule(Effect.ROUNDING)
_MOMENTS = Rule(Effect.COURSE, "the moments so far were averaged with the other")
_SAME_MATHEMATICS = Rule(Effect.ROUNDING, "the same mathematics, rounded elsewhere")
_MISHAPS = Rule(Effect.TOLD, "counts from the next bad step on")
_VALIDATION = Rule(
    Effect.TOLD, "validation losses cannot be compared with earlier ones", _validates
)
_MUON = Rule(Effect.COURSE, "counts for Muon's matrices from here on", _has_muon)

RULES: Mapping[str, Rule] = {
    # model
    "rwkv_version": Rule(Effect.FIXED, "the state's weights are of the other version"),
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
    "head_size_divisor": Rule(
        Effect.REFUSED, "another group norm: the trained weights compute something else"
    ),
    "dropout": Rule(Effect.COURSE, "counts from here on"),
    # data
    "data_file": _SAMPLES,
    "mix_tokens": _SAMPLES,
    "data_type": Rule(Effect.REFUSED, "the file is read as other tokens"),
    "ctx_len": _SAMPLES,
    "magic_prime": _SAMPLES,
    "sampling": _SAMPLES,
    "sample_offset": _SAMPLES,
    "loss_mask": Rule(Effect.REFUSED, "other targets count in the loss"),
    "reset_at_documents": Rule(
        Effect.REFUSED, "what a sample reads before a document's start counts, or no longer does"
    ),
    "val_data_file": _VALIDATION,
    "val_split": Rule(Effect.FIXED, "what was held out would be trained on, or the reverse"),
    "val_samples": _VALIDATION,
    "val_ctx_len": _VALIDATION,
    "tokenizer": Rule(
        Effect.TOLD, "the tokens stay those of the data; bits per byte may differ", _validates
    ),
    "num_workers": _NOTHING,
    # optim
    "lr_init": _RATE,
    "lr_final": _RATE,
    "warmup_steps": _RATE,
    "beta1": _MOMENTS,
    "beta2": _MOMENTS,
    "adam_eps": Rule(Effect.COURSE, "counts from here on"),
    "weight_decay": Rule(Effect.COURSE, "counts from here on"),
    "weight_decay_final": Rule(Effect.COURSE, "the decay's curve is another from here on"),
    "grad_clip": Rule(Effect.COURSE, "counts from here on"),
    "layerwise_lr": Rule(Effect.COURSE, "some groups have another rate from here on"),
    "special_lr_factor": Rule(Effect.COURSE, "the special groups have another rate from here on"),
    "hold_epochs": _RATE,
    "optimizer": Rule(Effect.COURSE, "the moments start empty"),
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
    "exit_tokens": _RATE,
    # They end a start, and the next one resumes there.
    "max_steps": _NOTHING,
    "exit_epoch": _NOTHING,
    "epoch_steps": Rule(Effect.TOLD, "files are numbered by the new mini-epochs from here on"),
    "epoch_count": Rule(_RATE.effect, "", _follows_mini_epochs),
    "epoch_begin": _NOTHING,
    "epoch_save": _NOTHING,
    "val_every": _NOTHING,
    "save_best": _NOTHING,
    "save_fp32": Rule(Effect.TOLD, "the format of rwkv-N.pth changes, training does not"),
    "train_type": Rule(Effect.FIXED, "another part of the model was trained"),
    "random_seed": Rule(
        Effect.REFUSED, "samples lie at other random positions", _samples_at_random
    ),
    "grad_cp": _SAME_MATHEMATICS,
    "chunk_len": _SAME_MATHEMATICS,
    "bptt_chunks": Rule(Effect.COURSE, "gradients reach another distance from here on"),
    "accept_changes": _NOTHING,
    # adapter
    "lora_r": _ADAPTER,
    "lora_alpha": _ADAPTER,
    "lora_dropout": Rule(Effect.COURSE, "counts from here on", _has_adapters),
    "lora_targets": _ADAPTER,
    "lora_init": _ADAPTER,
    "lora_dora": _ADAPTER,
    "lora_train": _ADAPTER,
    # safety
    "save_every_steps": _NOTHING,
    "save_every_minutes": _NOTHING,
    "save_in_background": _NOTHING,
    "save_retry_seconds": _NOTHING,
    "keep_last": _NOTHING,
    "keep_every": _NOTHING,
    "keep_last_weights": _NOTHING,
    "on_bad_step": _MISHAPS,
    "spike_sigma": Rule(Effect.COURSE, "other steps are spikes, which are skipped, from here on"),
    "bad_steps_before_rollback": _MISHAPS,
    "max_rollbacks": _MISHAPS,
    # hardware
    "accelerator": _SAME_MATHEMATICS,
    "devices": _BATCH,
    "num_nodes": _BATCH,
    "precision": Rule(
        Effect.COURSE, "steps are computed in it from here on; the state is fp32 in any case"
    ),
    "strategy": _SAME_MATHEMATICS,
    "ds_bucket_mb": Rule(Effect.ROUNDING, "gradients are summed in other buckets", _has_zero),
    "wkv_backend": _SAME_MATHEMATICS,
    "head_chunk": _SAME_MATHEMATICS,
    # log
    "wandb": _NOTHING,
    "wandb_mode": _NOTHING,
    "enable_progress_bar": _NOTHING,
    "plot": _NOTHING,
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
                "is no setting"
                if rule is None
                else f"never can: {rule.says}"
                if rule.effect is Effect.FIXED
                else "need not be accepted"
            )
            raise ConfigError(
                f"--accept_changes {name}: {name} {why}; expected some of {', '.join(ACCEPTABLE)}"
            )
