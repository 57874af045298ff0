"""The run itself: model, optimizer, data and callbacks put together, then trained to the end.

Only wiring, a part a line. Imported once `start.prepare` has run: Lightning and DeepSpeed read what
it sets for them when they are imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.run_length import RunLength, run_length, window_len
from rwkv_train.config.schema import listed
from rwkv_train.config.versions import VERSIONS
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.compiled_blocks import compile_blocks
from rwkv_train.models.parameters import ParameterGroup, parameter_groups
from rwkv_train.report.run_lives import LifeAccount
from rwkv_train.training.bad_steps.detector import SpikeDetector
from rwkv_train.training.bad_steps.recovery import Recovery
from rwkv_train.training.bad_steps.step_veto import StepVeto
from rwkv_train.training.checkpointing.saver import Saver
from rwkv_train.training.checkpointing.state_writer import StateWriter
from rwkv_train.training.checkpointing.storage_choice import choose_storage, make_storage
from rwkv_train.training.distributed.context_group import begin_context_group
from rwkv_train.training.distributed.file_transfer import ReceivedFiles
from rwkv_train.training.distributed.process_group import DecidedEnvironment, begin_group, end_group
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.distributed.strategy import (
    build_strategy,
    deepspeed_config,
    release_engine,
)
from rwkv_train.training.environment import is_rank_zero
from rwkv_train.training.finished import finish_at_once
from rwkv_train.training.kept_heap import keep_heap
from rwkv_train.training.launchers.launch import Launch
from rwkv_train.training.live.live_questions import LiveQuestions
from rwkv_train.training.loader import RunData
from rwkv_train.training.module import TrainingModule
from rwkv_train.training.observing import Observer
from rwkv_train.training.optim.freeze import describe_trained, freeze_all_but
from rwkv_train.training.optim.schedule import make_schedule
from rwkv_train.training.profiling.step_profiler import StepProfiler
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.header import print_header
from rwkv_train.training.reporting.lives_file import open_account
from rwkv_train.training.reporting.reporter import Reporter
from rwkv_train.training.reporting.run_files import begin_reporting
from rwkv_train.training.run_clock import RunClock
from rwkv_train.training.start.bf16_speed import bf16_notes
from rwkv_train.training.start.build_kernels import describe_operators
from rwkv_train.training.start.initial_weights import make_model
from rwkv_train.training.start.life_facts import life_facts
from rwkv_train.training.start.prepare import Prepared
from rwkv_train.training.start.resume_point import FromState, ResumePoint
from rwkv_train.training.start.resume_progress import restore_carried, resume_progress
from rwkv_train.training.start.state_copies import StateCopies
from rwkv_train.training.step_callback import StepCallback
from rwkv_train.training.step_meter import StepMeter, figures_left_out
from rwkv_train.training.step_reports import StepReports
from rwkv_train.training.trainer import build_trainer, set_up_torch
from rwkv_train.training.utilization import Utilization, find_utilization
from rwkv_train.training.validation import Validator

# A run without an end still needs a length for the loader.
ENDLESS = 10**12


class Beginning(NamedTuple):
    """The resume point of a run, its counters there, and its length."""

    point: ResumePoint
    progress: Progress
    length: RunLength


def run(prepared: Prepared, ranks: Ranks, received: ReceivedFiles, began: float) -> int:
    """Trains from the resume point to the end of the run.

    received: files of the resume point, which are in use until the state is restored.
    began: when the program began, by `time.perf_counter`.
    Returns the exit status: 0 at the end, 128 + n after signal n. Raises TrainerError, and
    RemoteRankError on the ranks that leave because of another's fault.
    """
    config, length = prepared.config, run_length(prepared.config)
    point, progress = resume_progress(prepared.point, config, length)
    beginning = Beginning(point, progress, length)
    if length.total_steps is not None and progress.step >= length.total_steps:
        return finish_at_once(prepared, *beginning)
    choice = choose_storage(config, ranks)
    _forget_state(prepared.point, point)
    carried = restore_carried(point, config, length, progress)
    # Before the model: the number of threads is part of how its values are computed.
    memory = ("memory", prepared.memory.line())
    machine = [memory, *set_up_torch(config.hardware), *_heap(config)]
    model, base = make_model(config, point)
    groups = _groups(model, config)
    # Before the strategy wraps the model: DDP and DeepSpeed take what learns at that moment.
    freeze_all_but(model, groups)
    if config.hardware.compile:
        compile_blocks(model)
    strategy = build_strategy(
        config.hardware, micro_bsz=config.train.micro_bsz, grad_clip=config.optim.grad_clip
    )
    reporters: list[Reporter] = []
    account, utilization = LifeAccount(0.0, 0.0), Utilization()
    if is_rank_zero():
        utilization, lines = find_utilization(config)
        machine += lines
        _print_header(prepared, beginning, ranks.launch, model, groups, machine, choice.notes)
        settings = deepspeed_config(strategy)
        facts = life_facts(prepared.lock, progress.step * length.tokens_per_step, began)
        account = open_account(Path(config.train.proj_dir), facts)
        reporters = begin_reporting(prepared, length, progress.step, settings, account)
    # One detector: the veto asks it, the callback tells it, the saver keeps what it knows.
    detector = SpikeDetector(config.safety)
    clock = RunClock()
    clock.heard = ranks.pulse.move
    veto = StepVeto(detector, clock)
    storage = make_storage(choice, ranks, *_writing(prepared, beginning, base, model))
    copies = _begin_copies(prepared, point, base)
    saver = Saver(config, length, detector, storage, prepared.lock.fault, copies.offer)
    ranks.leaving.at_leave(lambda: saver.wait(skip_backoff=True))
    recovery = Recovery(config, length, detector, ranks)
    meter = StepMeter(config, length, clock, utilization, began, prepared.reload_seconds)
    reports = StepReports(length, progress.step, meter, reporters, account)
    ranks.leaving.at_fault(lambda fault: reports.fault(str(fault), fault.status))
    callback = _callback(
        prepared, beginning, detector, veto, saver, recovery, reports, received, ranks
    )
    begin_group(ranks, config.hardware)
    module = TrainingModule(
        model,
        groups,
        config.optim,
        config.hardware,
        carried,
        veto.allows,
        clock,
        window_len(config),
        begin_context_group(config.hardware, ranks.step_seconds, clock),
    )
    trainer = build_trainer(config, strategy, DecidedEnvironment(ranks.launch), callback)
    steps = (length.total_steps or ENDLESS) - progress.step
    data = RunData(prepared.samples.training, config, progress.step, steps, clock)
    trainer.fit(module, datamodule=data)
    ranks.pulse.move("end")
    if trainer.interrupted:
        # Lightning swallows a Ctrl-C that comes before the first step.
        raise KeyboardInterrupt
    release_engine(trainer.strategy)
    end_group(config.hardware)
    # A signal in the last step asks for what has happened anyway.
    return 0 if progress.step == length.total_steps else callback.stop.exit_status


def _callback(
    prepared: Prepared,
    beginning: Beginning,
    detector: SpikeDetector,
    veto: StepVeto,
    saver: Saver,
    recovery: Recovery,
    reports: StepReports,
    received: ReceivedFiles,
    ranks: Ranks,
) -> StepCallback:
    config, point = prepared.config, beginning.point
    conventions = VERSIONS[config.model.rwkv_version].conventions
    stop, clock = ranks.stop, reports.meter.clock
    questions = LiveQuestions(config, prepared.live, lambda: stop.received is not None)
    validator = Validator(config, prepared.samples.held_out, clock)
    return StepCallback(
        config,
        beginning.length,
        make_schedule(config, conventions.warmup_floor),
        beginning.progress,
        state=point.state if isinstance(point, FromState) else None,
        on_restored=received.remove,
        detector=detector,
        veto=veto,
        saver=saver,
        recovery=recovery,
        observer=Observer(config, validator, questions, saver, clock),
        reports=reports,
        profiler=StepProfiler(config, clock) if config.log.profile and is_rank_zero() else None,
        stop=stop,
        pulse=ranks.pulse,
    )


def _forget_state(found: ResumePoint, used: ResumePoint) -> None:
    """Empties the state of a point that is not in use; the other's is emptied once restored."""
    states = [point.state for point in (found, used) if isinstance(point, FromState)]
    if len(states) == 2 and states[0] is not states[1]:
        states[0].clear()


def _begin_copies(
    prepared: Prepared, point: ResumePoint, base: Mapping[str, Any] | None
) -> StateCopies:
    """Returns the copies of states, begun with the one that is resumed."""
    resumed = point.path if isinstance(point, FromState) else None
    folder = Path(prepared.config.train.proj_dir)
    prepared.copies.begin(folder, prepared.lineage["run"], base, resumed)
    return prepared.copies


def _writing(
    prepared: Prepared, beginning: Beginning, base: Mapping[str, Any] | None, model: RWKV
) -> tuple[StateWriter | None, dict[str, torch.Tensor]]:
    """Returns what writes states on the first rank, and the values that do not learn, by name."""
    point, _, length = beginning
    first, writer = is_rank_zero(), None
    if first:
        state = point if isinstance(point, FromState) else None
        writer = StateWriter(
            prepared.config,
            length,
            base,
            resumed=None if state is None else state.path,
            record=None if state is None else state.state.get("written"),
            lineage=prepared.lineage,
        )
    # Before a strategy rounds them to its precision; the other ranks need their names alone.
    frozen = {
        name: parameter.detach() if first else torch.empty(0)
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }
    return writer, frozen


def _print_header(
    prepared: Prepared,
    beginning: Beginning,
    launch: Launch,
    model: RWKV,
    groups: list[ParameterGroup],
    machine: list[tuple[str, str]],
    notes: Sequence[str],
) -> None:
    config, samples = prepared.config, prepared.samples
    point, progress, length = beginning
    learns = [] if config.train.train_type == "all" else [describe_trained(model)]
    print_header(
        config,
        length,
        processes=launch.describe(),
        start=point.describe(progress.step),
        parameters=sum(p.numel() for p in model.parameters()),
        data_tokens=samples.training.tokens,
        groups=groups,
        held_out=[(source.name, len(source.dataset)) for source in samples.held_out],
        changes=[change.text for change in prepared.point.changes],
        operators=[*describe_operators(prepared.operators, config.hardware.accelerator), *machine],
        notes=[
            *launch.notes,
            *prepared.derived,
            *bf16_notes(config.hardware),
            *figures_left_out(config.hardware),
            *learns,
            *samples.notes,
            *prepared.live.notes(),
            *prepared.copies.notes,
            *point.notes,
            *notes,
        ],
    )


def _heap(config: ResolvedConfig) -> list[tuple[str, str]]:
    """Keeps the heap of a run on the CPU if it is to be; returns the header's line about it."""
    if config.hardware.accelerator == "gpu":
        # Its activations lie on the card.
        return []
    if not config.hardware.keep_heap:
        return [("heap", "given back to the system after every step")]
    return [("heap", keep_heap())]


def _groups(model: RWKV, config: ResolvedConfig) -> list[ParameterGroup]:
    """Returns the parameters that learn, by rate factor and weight decay."""
    optim = config.optim
    return parameter_groups(
        model,
        weight_decay=optim.weight_decay,
        layerwise_lr=optim.layerwise_lr,
        special_lr_factor=optim.special_lr_factor,
        train_type=config.train.train_type,
        matrices_apart=optim.optimizer == "muon",
        fully=listed(config.adapter.lora_train),
    )
