"""Weights & Biases with RWKV-LM's keys; offline and disabled modes need no account."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import ConfigError
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.records import (
    BadStepRecord,
    EmptyStepRecord,
    RollbackRecord,
    StepRecord,
)
from rwkv_train.training.reporting.reporter import Reporter
from rwkv_train.training.reporting.validation_record import ValidationRecord

ID_FILE = "wandb_id.txt"


class WandbLog(Reporter):
    """Logs every step under its number counted from 1, as RWKV-LM does."""

    def __init__(self, config: ResolvedConfig, name: str, first_step: int) -> None:
        import wandb

        folder, asked = Path(config.train.proj_dir), config.log.wandb_mode
        id_file = folder / ID_FILE
        # A resumed run continues the same Weights & Biases run.
        known = id_file.read_text().strip() if first_step and id_file.is_file() else None
        try:
            self._run = wandb.init(
                project=config.log.wandb,
                name=name,
                id=known,
                resume="allow",
                config=asdict(config.as_given()),
                dir=str(folder),
                # None leaves the choice to wandb: online, or what its own WANDB_MODE says.
                mode=None if asked == "online" else asked,
                save_code=False,
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.UsageError as error:
            raise ConfigError(
                f"--wandb {config.log.wandb}: {str(error).splitlines()[0]}; log in with `wandb "
                'login`, or give --wandb_mode offline, or --wandb "" for none'
            ) from error
        id_file.write_text(self._run.id + "\n")

    def on_step(self, record: StepRecord, progress: Progress) -> None:
        """Logs loss, lr, wd, Gtokens, kt/s (RWKV-LM's keys) and grad_norm."""
        self._run.log(
            {
                "loss": record.loss,
                "lr": record.lr,
                "wd": record.weight_decay,
                "Gtokens": record.tokens / 1e9,
                "kt/s": record.tokens_per_second / 1000,
                "grad_norm": record.grad_norm,
            },
            step=record.step + 1,
        )

    def on_bad_step(self, record: BadStepRecord) -> None:
        """Logs skipped: 1 at a step that was skipped."""
        # wandb wants rising steps: this one's number has no other record.
        self._run.log({"skipped": 1}, step=record.step + 1)

    def on_empty_step(self, record: EmptyStepRecord) -> None:
        """Logs empty: 1 at a step without anything to learn."""
        self._run.log({"empty": 1}, step=record.step + 1)

    def on_rollback(self, record: RollbackRecord) -> None:
        """Logs rollback: 1 at the step after which the run rolled back."""
        self._run.log({"rollback": 1}, step=record.step + 1)

    def on_validation(self, record: ValidationRecord) -> None:
        """Logs val_loss and its like at the step they were measured after, a curve per position."""
        curves: dict[str, object] = {}
        for name, value in record.values().items():
            if isinstance(value, dict):
                curves |= {f"{name}/{part}": loss for part, loss in value.items()}
            elif name.startswith("val_") and name != "val_tokens":
                curves[name] = value
        self._run.log(curves, step=record.step + 1)

    def close(self) -> None:
        """Uploads the rest."""
        self._run.finish()
