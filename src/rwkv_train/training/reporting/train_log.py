"""proj_dir/train_log.txt in RWKV-LM's format: a header per start, a line per mini-epoch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.training.reporting.records import EpochRecord
from rwkv_train.training.reporting.reporter import Reporter

TRAIN_LOG = "train_log.txt"


class TrainLog(Reporter):
    """Appends to train_log.txt."""

    label = TRAIN_LOG

    def __init__(
        self, config: ResolvedConfig, timestamp: str, deepspeed: dict[str, Any] | None
    ) -> None:
        self._file = (Path(config.train.proj_dir) / TRAIN_LOG).open("a", encoding="utf-8")
        arguments = {
            k: v for section in asdict(config.as_given()).values() for k, v in section.items()
        }
        self._write(f"NEW RUN {timestamp}")
        self._write(str(arguments))
        if deepspeed is not None:
            self._write(json.dumps(deepspeed))

    def on_epoch(self, record: EpochRecord) -> None:
        """Writes N, mean loss, its exponential, rate, date and the number in this start."""
        # exp overflows beyond 709; a loss of 700 says enough
        perplexity = math.exp(min(record.mean_loss, 700.0))
        self._write(
            f"{record.epoch} {record.mean_loss:.6f} {perplexity:.4f} {record.last.lr:.8f} "
            f"{datetime.now()} {record.local_epoch}"
        )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
