"""Training proper: model, data, loop and trainer put together, then run to the plan's end."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytorch_lightning as pl
import torch

from rwkv_train.config.load import dump_config
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import RunLength, run_length, window_len
from rwkv_train.config.schema import RunConfig, listed
from rwkv_train.config.versions import Conventions
from rwkv_train.data.samples.sample_source import SampleSource
from rwkv_train.errors import ConfigError
from rwkv_train.files import remove_partial_files, write_atomically
from rwkv_train.models.parameters import ParameterGroup, parameter_groups
from rwkv_train.training.carried_state import CarriedStates
from rwkv_train.training.distributed.strategy import ZeroStrategy
from rwkv_train.training.environment import is_rank_zero
from rwkv_train.training.loader import RunData
from rwkv_train.training.loop import Loop
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.optim.freeze import describe_trained, freeze_all_but
from rwkv_train.training.optim.schedule import make_schedule
from rwkv_train.training.progress import Progress, StepSize
from rwkv_train.training.reporting.console import Console
from rwkv_train.training.reporting.empty_steps import EmptySteps
from rwkv_train.training.reporting.header import print_header
from rwkv_train.training.reporting.metrics_file import MetricsFile
from rwkv_train.training.reporting.plot import LossPlot
from rwkv_train.training.reporting.reporter import Reporter
from rwkv_train.training.reporting.train_log import TrainLog
from rwkv_train.training.reporting.wandb_log import WandbLog
from rwkv_train.training.start.initial_weights import make_model
from rwkv_train.training.start.open_data import RunSamples
from rwkv_train.training.start.resume_point import Origin, change_optimizer
from rwkv_train.training.trainer import build_trainer
from rwkv_train.training.validation import Validator

# A run without an end still needs a length for the loader.
ENDLESS = 10**12


def fit(
    config: ResolvedConfig,
    conventions: Conventions,
    origin: Origin,
    samples: RunSamples,
    *,
    derived: list[str],
    saved_config: RunConfig,
) -> int:
    """Runs from `origin` to the end of the plan; 0 when it got there, 128 + n after signal n.

    config: resolved; derived: what was worked out, a line each; saved_config: what
    proj_dir/config.yaml holds, which repeats the run.
    Raises TrainerError.
    """
    length = run_length(config)
    progress = _progress(origin, config, length)
    if length.total_steps is not None and progress.step >= length.total_steps:
        _say_finished(config, length, progress)
        return 0
    _set_up_torch(config)
    model = make_model(config, origin)
    groups = parameter_groups(
        model,
        weight_decay=config.optim.weight_decay,
        layerwise_lr=config.optim.layerwise_lr,
        special_lr_factor=config.optim.special_lr_factor,
        train_type=config.train.train_type,
        matrices_apart=config.optim.optimizer == "muon",
        fully=listed(config.adapter.lora_train),
    )
    freeze_all_but(model, groups)
    if config.train.train_type != "all":
        derived = [*derived, describe_trained(model)]
    reporters: list[Reporter] = []
    if is_rank_zero():
        print_header(
            config,
            length,
            origin,
            progress,
            parameters=sum(p.numel() for p in model.parameters()),
            data_tokens=samples.training.tokens,
            groups=_described(groups),
            derived=derived + samples.notes,
            validation=_validation(config, samples),
        )
    loop = Loop(
        config,
        length,
        make_schedule(config, conventions.warmup_floor),
        progress,
        state=origin.state,
        base=origin.base_record,
        validator=Validator(config, samples.held_out),
        reporters=reporters,
    )
    carried = _carried(origin, config, length, progress)
    module = TrainingModule(model, groups, config.optim, config.hardware, carried)
    trainer = build_trainer(config, [loop])
    if is_rank_zero():
        reporters.extend(_begin_files(config, saved_config, samples, length, progress, trainer))
        if samples.training.has_loss_mask:
            reporters.append(EmptySteps(samples.training.step_weight, length.samples))
    steps = (length.total_steps or ENDLESS) - progress.step
    trainer.fit(module, datamodule=RunData(samples.training, config, progress.step, steps))
    if trainer.interrupted:
        # Lightning swallows a Ctrl-C that comes before the first step.
        raise KeyboardInterrupt
    if progress.step == length.total_steps:
        return 0
    return loop.stop.exit_status


def _progress(origin: Origin, config: ResolvedConfig, length: RunLength) -> Progress:
    """Counters to go on with; bare weights of mini-epoch N stand for its last step."""
    if origin.state is not None:
        saved = Progress.from_dict(origin.state)
        saved = change_optimizer(origin, saved, config.optim)
        now = StepSize(length.tokens_per_step, config.data.ctx_len, length.windows)
        before = StepSize(
            *(
                origin.state.get(key, value)
                for key, value in zip(
                    ("tokens_per_step", "ctx_len", "windows"), (now.tokens, now.ctx_len, 1)
                )
            )
        )
        progress = saved.with_steps(before, now)
        if before != now:
            left_out = progress.step * now.tokens > saved.step * before.tokens
            origin.notes.append(
                f"a step had {before.tokens:,} tokens and has {now.tokens:,} now: step "
                f"{saved.step} becomes step {progress.step}, "
                + ("after the samples it was in" if left_out else "the same place in the data")
            )
        return progress
    step = config.train.epoch_begin * length.epoch_steps
    # Bare weights have no carried states: on to the next rows.
    step = -(-step // length.windows) * length.windows
    return Progress(step=step, ramp_begin=step)


def _carried(
    origin: Origin, config: ResolvedConfig, length: RunLength, progress: Progress
) -> CarriedStates:
    """The carried states to go on with: those of `origin` in the middle of rows, else none."""
    carried = CarriedStates(config.data.ctx_len)
    if origin.state is not None and progress.step % length.windows:
        first, last = length.samples(progress.step)
        position = progress.step % length.windows * window_len(config)
        carried.restore(origin.state["carried"], range(first, last + 1), position)
    return carried


def _set_up_torch(config: ResolvedConfig) -> None:
    hardware = config.hardware
    if hardware.accelerator == "gpu":
        # RWKV-LM: TF32 everywhere but in fp32 mode.
        torch.set_float32_matmul_precision("highest" if hardware.precision == "fp32" else "high")
        torch.backends.cudnn.benchmark = True
    elif hardware.devices > 1:
        # Each process would otherwise start a thread per core.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // hardware.devices))


def _described(groups: list[ParameterGroup]) -> dict[str, int]:
    """The parameter groups as people name them: rate factor and whether they decay."""
    return {
        f"{group.lr_factor:g}x"
        + (" with decay" if group.weight_decay > 0 else "")
        + (" by Muon" if group.hidden_matrices else ""): len(group.parameters)
        for group in groups
    }


def _begin_files(
    config: ResolvedConfig,
    saved_config: RunConfig,
    samples: RunSamples,
    length: RunLength,
    progress: Progress,
    trainer: pl.Trainer,
) -> list[Reporter]:
    """Clears up after a killed run, writes what describes this one, opens its logs."""
    try:
        remove_partial_files(Path(config.train.proj_dir))
        _write_config(saved_config)
        _write_characters(config, samples.training)
        return _reporters(config, length, progress, trainer)
    except OSError as error:
        raise ConfigError(
            f"--proj_dir {config.train.proj_dir} cannot be written ({error.strerror or error}); "
            "make room there, or choose another folder. Nothing in it was lost"
        ) from error


def _validation(config: ResolvedConfig, samples: RunSamples) -> str:
    """What is validated, on how many samples, and when."""
    if not samples.held_out:
        return "none"
    data, train = config.data, config.train
    names = ", ".join(
        f"{len(source.dataset)} x {data.val_ctx_len} tokens of {source.name}"
        for source in samples.held_out
    )
    often = f"every {train.val_every} steps and " if train.val_every else ""
    best = "; the best is kept" if train.save_best else ""
    return f"{names}, {often}at every mini-epoch that is saved{best}"


def _reporters(
    config: ResolvedConfig, length: RunLength, progress: Progress, trainer: pl.Trainer
) -> list[Reporter]:
    folder = Path(config.train.proj_dir)
    timestamp = datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    m, d = config.model, config.data
    name = f"{m.vocab_size} ctx{d.ctx_len} L{m.n_layer} D{m.n_embd}"
    strategy = trainer.strategy
    zero = strategy.config if isinstance(strategy, ZeroStrategy) else None
    reporters: list[Reporter] = [
        MetricsFile(folder, progress.step * length.tokens_per_step),
        TrainLog(config, timestamp, zero),
        Console(progress.step, length.total_steps, bar=config.log.enable_progress_bar),
    ]
    if config.log.wandb is not None:
        reporters.append(WandbLog(config, f"{name} {timestamp}", progress.step))
    if config.log.plot:
        reporters.append(LossPlot(folder, _title(config), config.data.ctx_len))
    return reporters


def _title(config: ResolvedConfig) -> str:
    m = config.model
    return (
        f"RWKV-{m.rwkv_version}, {m.n_layer} layers, width {m.n_embd}, context "
        f"{config.data.ctx_len}, vocabulary {m.vocab_size}"
    )


def _write_config(config: RunConfig) -> None:
    path = Path(config.train.proj_dir) / "config.yaml"
    write_atomically(path, dump_config(config).encode())


def _write_characters(config: ResolvedConfig, dataset: SampleSource) -> None:
    """vocab.json of the character types, as RWKV-LM writes it: id -> character."""
    characters = dataset.characters
    if characters is not None:
        text = json.dumps({str(i): c for i, c in characters.items()}, ensure_ascii=False)
        path = Path(config.train.proj_dir) / "vocab.json"
        write_atomically(path, text.encode("utf-8", "surrogatepass"))


def _say_finished(config: ResolvedConfig, length: RunLength, progress: Progress) -> None:
    if is_rank_zero():
        print(
            f"the run in {config.train.proj_dir} is finished: {progress.step} of "
            f"{length.total_steps} steps ({length.reason}). To train on, raise the limit; for "
            "another run choose another --proj_dir"
        )
