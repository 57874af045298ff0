"""proj_dir/tensorboard: event files for TensorBoard, the curves of metrics.jsonl."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rwkv_train.errors import ConfigError, missing_package
from rwkv_train.training.live.live_records import SampleRecord
from rwkv_train.training.reporting.curve_log import CurveLog

TENSORBOARD = "tensorboard"
# Seconds until what was drawn is on disk.
_FLUSH_SECONDS = 30


class TensorboardLog(CurveLog):
    """Writes an event per record into proj_dir/tensorboard, or a folder `name` in it.

    first_step: steps done; what an earlier start has drawn behind them is hidden by TensorBoard.
    Raises ConfigError where the writer's package is missing.
    """

    label = "TensorBoard"

    def __init__(self, folder: Path, name: str | None, first_step: int) -> None:
        try:
            from tensorboardX import SummaryWriter
            from tensorboardX.proto.summary_pb2 import Summary
        except ImportError:
            needs = missing_package("--tensorboard 1", "tensorboardX", "tensorboard")
            raise ConfigError(needs) from None

        self._summary = Summary
        self._writer = SummaryWriter(
            str(folder / TENSORBOARD / (name or "")),
            purge_step=first_step + 1,
            flush_secs=_FLUSH_SECONDS,
            # Files are named by the second, and one of another start must not be written over.
            filename_suffix=f".{first_step:09d}.{os.getpid()}",
        )

    def draw(self, step: int, points: Mapping[str, float]) -> None:
        """Writes the points of a step as one event: one each takes ten times as long."""
        values = [self._summary.Value(tag=key, simple_value=at) for key, at in points.items()]
        self._writer.file_writer.add_summary(self._summary(value=values), step)

    def on_samples(self, record: SampleRecord) -> None:
        """Writes the texts too, indented: as Markdown they would be code otherwise."""
        super().on_samples(record)
        for number, sample in enumerate(record.samples, 1):
            text = (sample.prompt + sample.text).replace("\n", "\n    ")
            self._writer.add_text(f"samples/{number}", f"    {text}", record.step + 1)

    def close(self) -> None:
        """Writes the rest."""
        self._writer.close()
