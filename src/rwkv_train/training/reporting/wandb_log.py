"""Weights & Biases; offline and disabled modes need no account."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.errors import ConfigError, missing_package, short_reason
from rwkv_train.training.live.live_records import SampleRecord
from rwkv_train.training.reporting.curve_log import CurveLog

ID_FILE = "wandb_id.txt"
# RWKV-LM's name -> our key and its unit in theirs; charts of other runs are made of these.
RWKV_LM_KEYS = {
    "wd": ("weight_decay", 1.0),
    "Gtokens": ("tokens", 1e-9),
    "kt/s": ("tokens_per_second", 1e-3),
}
# Seconds: to answer the question for a key, to begin a run, to send the rest at its end.
LIMITS: dict[str, Any] = {"login_timeout": 60, "init_timeout": 30, "finish_timeout": 300}


class WandbLog(CurveLog):
    """Logs every step under its number counted from 1, as RWKV-LM does.

    Raises ConfigError where wandb is missing.
    """

    label = "Weights & Biases"

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

    def draw(self, step: int, points: Mapping[str, float]) -> None:
        """Logs the points of a step, and RWKV-LM's names of some beside ours."""
        theirs = {
            name: points[key] * unit for name, (key, unit) in RWKV_LM_KEYS.items() if key in points
        }
        self._run.log({**points, **theirs}, step=step)

    def on_samples(self, record: SampleRecord) -> None:
        """Logs a table of prompts and texts too."""
        import wandb

        super().on_samples(record)
        rows = [[sample.prompt, sample.text] for sample in record.samples]
        table = wandb.Table(columns=["prompt", "text"], data=rows)
        self._run.log({"samples": table}, step=record.step + 1)

    def close(self) -> None:
        """Uploads the rest."""
        self._run.finish()


def _known_id(file: Path) -> str | None:
    """Returns the name of the Weights & Biases run that a resumed run continues."""
    if not file.is_file():
        return None
    text = file.read_text(errors="replace").strip()
    return text if re.fullmatch(r"[\w-]{1,64}", text, re.ASCII) else None
