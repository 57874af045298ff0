"""Begins the files that a run writes next to its checkpoints: config.yaml, vocab.json, logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rwkv_train.config.load import dump_config
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import RunLength
from rwkv_train.errors import ConfigError
from rwkv_train.files import remove_partial_files, write_atomically
from rwkv_train.training.reporting.console import Console
from rwkv_train.training.reporting.empty_steps import EmptySteps
from rwkv_train.training.reporting.metrics_file import MetricsFile
from rwkv_train.training.reporting.plot import LossPlot
from rwkv_train.training.reporting.reporter import Reporter
from rwkv_train.training.reporting.train_log import TrainLog
from rwkv_train.training.reporting.wandb_log import WandbLog
from rwkv_train.training.start.prepare import Prepared
from rwkv_train.training.start.run_identity import append_start, start_record


def begin_reporting(
    prepared: Prepared, length: RunLength, step: int, deepspeed: dict[str, Any] | None
) -> list[Reporter]:
    """Clears up after a killed run, writes what describes this one, and returns its reporters.

    step: at which the run starts. deepspeed: the engine's settings, for the log. Raises ConfigError
    when the project folder cannot be written.
    """
    config, samples = prepared.config, prepared.samples.training
    folder = Path(config.train.proj_dir)
    try:
        # Before anything else is written: what a killed run left half may fill the disk.
        remove_partial_files(folder)
        write_atomically(folder / "config.yaml", dump_config(prepared.saved_config).encode())
        if samples.characters is not None:
            _write_vocabulary(folder, samples.characters)
        tokens, run = step * length.tokens_per_step, prepared.lineage["run"]
        append_start(folder, start_record(run, prepared.point, step, tokens))
        reporters = _open_logs(config, folder, length, step, deepspeed)
    except OSError as error:
        raise ConfigError(
            f"--proj_dir {config.train.proj_dir} cannot be written ({error.strerror or error}); "
            "make room there, or choose another folder. Nothing in it was lost"
        ) from error
    if samples.has_loss_mask:
        reporters.append(EmptySteps(samples.step_weight, length.samples))
    return reporters


def _open_logs(
    config: ResolvedConfig,
    folder: Path,
    length: RunLength,
    step: int,
    deepspeed: dict[str, Any] | None,
) -> list[Reporter]:
    """Returns the reporters that this configuration asks for."""
    timestamp = datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    model, ctx_len = config.model, config.data.ctx_len
    reporters: list[Reporter] = [
        MetricsFile(folder, step * length.tokens_per_step),
        TrainLog(config, timestamp, deepspeed),
        Console(step, length.total_steps, bar=config.log.enable_progress_bar),
    ]
    if config.log.wandb is not None:
        # RWKV-LM's way to name a run.
        name = f"{model.vocab_size} ctx{ctx_len} L{model.n_layer} D{model.n_embd} {timestamp}"
        reporters.append(WandbLog(config, name, step))
    if config.log.plot:
        title = (
            f"RWKV-{model.rwkv_version}, {model.n_layer} layers, width {model.n_embd}, context "
            f"{ctx_len}, vocabulary {model.vocab_size}"
        )
        reporters.append(LossPlot(folder, title, ctx_len))
    return reporters


def _write_vocabulary(folder: Path, characters: Mapping[int, str]) -> None:
    """Writes vocab.json of the character types, as RWKV-LM does: id -> character."""
    text = json.dumps({str(i): c for i, c in characters.items()}, ensure_ascii=False)
    # Half of a UTF-16 pair is a character of its own in such a text.
    write_atomically(folder / "vocab.json", text.encode("utf-8", "surrogatepass"))
