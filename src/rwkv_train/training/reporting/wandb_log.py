"""Weights & Biases with RWKV-LM's keys; offline and disabled modes need no account."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import ConfigError, missing_package, short_reason
from rwkv_train.training.live.live_records import SampleRecord, TaskRecord
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
# Seconds: to answer the question for a key, to begin a run, to send the rest at its end.
LIMITS: dict[str, Any] = {"login_timeout": 60, "init_timeout": 30, "finish_timeout": 300}


class WandbLog(Reporter):
    """Logs every step under its number counted from 1, as RWKV-LM does."""

    def __init__(self, config: ResolvedConfig, name: str, first_step: int) -> None:
        try:
            import wandb
        except ImportError:
            needs = missing_package(f"--wandb {config.log.wandb}", "wandb", "wandb")
            raise ConfigError(needs) from None

        folder, asked = Path(config.train.proj_dir), config.log.wandb_mode
        id_file = folder / ID_FILE
        # Those that this version of wandb has; without them a dead network holds a run for ever.
        limits: dict[str, Any] = {
            k: v for k, v in LIMITS.items() if k in getattr(wandb.Settings, "model_fields", ())
        }
        begin = partial(
            wandb.init,
            project=config.log.wandb,
            name=name,
            id=_known_id(id_file) if first_step else None,
            resume="allow",
            config=asdict(config.as_given()),
            dir=str(folder),
            save_code=False,
            settings=wandb.Settings(silent=True, **limits),
        )
        try:
            # None leaves the choice to wandb: online, or what its own WANDB_MODE says.
            self._run = begin(mode=None if asked == "online" else asked)
        except Exception as error:
            if asked != "online":
                raise
            print(
                f"WARNING: --wandb {config.log.wandb} is not reached ({short_reason(error)}); the "
                f"curves are written to {folder / 'wandb'}, from where `wandb sync` sends them",
                file=sys.stderr,
                flush=True,
            )
            self._run = begin(mode="offline")
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

    def on_tasks(self, record: TaskRecord) -> None:
        """Logs eval/TASK/METRIC, a curve each."""
        curves = {
            f"eval/{name}/{metric}": value
            for name, figures in record.tasks.items()
            for metric, value in figures.items()
        }
        self._run.log(curves, step=record.step + 1)

    def on_samples(self, record: SampleRecord) -> None:
        """Logs a table of prompts and texts, and how far the two kinds of logits are apart."""
        import wandb

        rows = [[sample.prompt, sample.text] for sample in record.samples]
        table = wandb.Table(columns=["prompt", "text"], data=rows)
        found = {"samples": table, "logit_difference": record.logit_difference}
        self._run.log(found, step=record.step + 1)

    def close(self) -> None:
        """Uploads the rest."""
        self._run.finish()


def _known_id(file: Path) -> str | None:
    """Returns the name of the Weights & Biases run that a resumed run continues."""
    if not file.is_file():
        return None
    text = file.read_text(errors="replace").strip()
    return text if re.fullmatch(r"[\w-]{1,64}", text, re.ASCII) else None
