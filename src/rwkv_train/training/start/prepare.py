"""Prepares a run, a call a line: resume point, files, configuration, checks, folder."""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_train.config.resolve.resolve import for_saving, resolve
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import RunConfig
from rwkv_train.training.distributed.extensions import check_extensions, prepare_extensions
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.environment import is_rank_zero, prepare_libraries
from rwkv_train.training.start.build_kernels import OperatorBackend, build_for
from rwkv_train.training.start.check_machine import check_backend, check_packages, make_folder
from rwkv_train.training.start.discover import discover
from rwkv_train.training.start.initial_weights import save_initial_weights, write_initial_weights
from rwkv_train.training.start.open_data import RunSamples, mask_notes, open_samples
from rwkv_train.training.start.resume_point import Fresh, ResumePoint, find_resume_point
from rwkv_train.training.start.run_lock import RunLock


@dataclass(frozen=True)
class Prepared:
    """Everything a run starts with.

    config: resolved; saved_config: what proj_dir/config.yaml holds, which repeats the run.
    derived: what was worked out, a line each. lock: of the project folder. operators: the backends
    that serve.
    """

    config: ResolvedConfig
    saved_config: RunConfig
    point: ResumePoint
    samples: RunSamples
    derived: list[str]
    lock: RunLock
    operators: list[OperatorBackend]


def prepare_run(
    given: RunConfig, notices: list[str], lock: RunLock, ranks: Ranks
) -> Prepared | None:
    """Returns a run that can start; None at stage 1, whose initial weights are then written.

    notices: lines about translated flags, printed once; ranks: all of them get here before any of
    them writes. Every rank of every node calls this with the same configuration. Raises
    TrainerError before anything is written, but for a disk that fails.
    """
    # In this order: what lies on disk completes the configuration; the complete one says what to
    # check and to read; the folder is made last, so that a refusal leaves none behind.
    point = find_resume_point(given.train)
    discovered, opened = discover(given, point)
    config, derived = resolve(given, discovered)
    check_packages(config)
    check_backend(config)
    if config.train.train_stage != 1:
        check_extensions(config.hardware)
    samples = None
    if config.train.train_stage != 1:
        assert opened is not None, "check_fields refuses training without data"
        samples = open_samples(config, opened)
        derived += mask_notes(samples)
    prepare_libraries(config.hardware.accelerator)
    ranks.all_there()
    make_folder(config.train.proj_dir)
    # A new folder; one that was there has been locked before it was read.
    lock.acquire()
    if samples is None:
        write_initial_weights(config, point, notices + derived)
        return None
    if is_rank_zero():
        for line in notices:
            print(line)
        if isinstance(point, Fresh) and config.train.train_stage is None:
            # As RWKV-LM: what a run starts from is on disk, in the training precision.
            save_initial_weights(config, point)
            point = find_resume_point(config.train)
    # The last thing before steps, and after all that can refuse the run: it takes minutes.
    operators = build_for(config)
    prepare_extensions(config.hardware)
    return Prepared(config, for_saving(config, given), point, samples, derived, lock, operators)
