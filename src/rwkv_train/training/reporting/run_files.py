"""Begins the files that a run writes next to its checkpoints: config.yaml, vocab.json, logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from rwkv_train.config.load import dump_config
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import RunLength
from rwkv_train.data.tokenize.characters import VOCABULARY
from rwkv_train.data.tokenize.tokenizer_files import write_record
from rwkv_train.files import remove_partial_files, write_atomically
from rwkv_train.report.run_lives import LIVES_FILE, LifeAccount
from rwkv_train.report.run_records import METRICS_FILE, PLAN_FILE, STARTS_FILE
from rwkv_train.training.reporting.console import Console
from rwkv_train.training.reporting.lives_file import LivesFile
from rwkv_train.training.reporting.metrics_file import MetricsFile
from rwkv_train.training.reporting.plot import LossPlot
from rwkv_train.training.reporting.report_file import ReportFile
from rwkv_train.training.reporting.reporter import Reporter, warn_lost
from rwkv_train.training.reporting.tensorboard_log import TensorboardLog
from rwkv_train.training.reporting.train_log import TRAIN_LOG, TrainLog
from rwkv_train.training.reporting.wandb_log import WandbLog
from rwkv_train.training.start.plan_file import forecast_record
from rwkv_train.training.start.prepare import Prepared
from rwkv_train.training.start.run_identity import append_start, start_record

Opened = TypeVar("Opened")


def begin_reporting(
    prepared: Prepared,
    length: RunLength,
    step: int,
    deepspeed: dict[str, Any] | None,
    account: LifeAccount,
) -> list[Reporter]:
    """Clears up after a killed run, writes what describes this one, and returns its reporters.

    step: at which the run starts. deepspeed: the engine's settings, for the log. account: of the
    run's time. What cannot be written is named in a line each, and the run does without.
    """
    config, samples = prepared.config, prepared.samples.training
    folder = Path(config.train.proj_dir)
    # Before anything else is written: what a killed run left half may fill the disk.
    remove_partial_files(folder)
    saved = dump_config(prepared.saved_config).encode()
    _attempt(folder / "config.yaml", lambda: write_atomically(folder / "config.yaml", saved))
    tokenizer, characters = prepared.tokenizer, samples.characters
    if tokenizer is not None:
        _attempt("tokenizer_record.json", lambda: write_record(folder, tokenizer))
    if characters is not None:
        _attempt(folder / VOCABULARY, lambda: _write_vocabulary(folder, characters))
    plan = json.dumps(forecast_record(config, prepared.memory), indent=1).encode()
    _attempt(folder / PLAN_FILE, lambda: write_atomically(folder / PLAN_FILE, plan))
    record = start_record(
        prepared.lineage["run"], prepared.point, step, step * length.tokens_per_step
    )
    _attempt(folder / STARTS_FILE, lambda: append_start(folder, record))
    # Before the records of what is done again are dropped: their time is lost, and must be told.
    lives = _attempt(folder / LIVES_FILE, lambda: LivesFile(folder, account, step))
    logs = _open_logs(config, folder, length, step, deepspeed)
    return [*([lives] if lives else []), *logs]


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
    logs: list[Reporter | None] = [
        _attempt(folder / METRICS_FILE, lambda: MetricsFile(folder, step * length.tokens_per_step)),
        _attempt(folder / TRAIN_LOG, lambda: TrainLog(config, timestamp, deepspeed)),
        Console(step, length.total_steps, bar=config.log.enable_progress_bar),
    ]
    if config.log.wandb is not None:
        # RWKV-LM's way to name a run.
        sizes = f"{model.vocab_size} ctx{ctx_len} L{model.n_layer} D{model.n_embd} {timestamp}"
        name = config.log.run_name or sizes
        logs.append(_attempt(WandbLog.label, lambda: WandbLog(config, name, step)))
    if config.log.tensorboard:
        given = config.log.run_name
        logs.append(_attempt(TensorboardLog.label, lambda: TensorboardLog(folder, given, step)))
    reporters = [log for log in logs if log is not None]
    if config.log.plot:
        title = (
            f"RWKV-{model.rwkv_version}, {model.n_layer} layers, width {model.n_embd}, context "
            f"{ctx_len}, vocabulary {model.vocab_size}"
        )
        reporters.append(LossPlot(folder, title, ctx_len))
    if config.log.report:
        reporters.append(ReportFile(folder))
    return reporters


def _attempt(what: Path | str, make: Callable[[], Opened]) -> Opened | None:
    """Returns what `make` returns; None after a line on why it could not."""
    try:
        return make()
    # Anything, as in `notify`: a log is no reason to refuse a run.
    except Exception as error:
        warn_lost(str(what), error)
        return None


def _write_vocabulary(folder: Path, characters: Mapping[int, str]) -> None:
    """Writes vocab.json of the character types, as RWKV-LM does: id -> character."""
    text = json.dumps({str(i): c for i, c in characters.items()}, ensure_ascii=False)
    # Half of a UTF-16 pair is a character of its own in such a text.
    write_atomically(folder / VOCABULARY, text.encode("utf-8", "surrogatepass"))
