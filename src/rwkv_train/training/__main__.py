"""Trains an RWKV language model: `python train.py --help` lists the flags."""

from __future__ import annotations

import dataclasses
import errno
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_train.command_line import program
from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.load import load_config
from rwkv_train.config.rwkv_lm.flags import translate
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import REFUSED, TrainerError, exit_status
from rwkv_train.processors import prepare_threads
from rwkv_train.training.environment import (
    is_rank_zero,
    quiet_connections,
    remember_ranks,
    variables,
)
from rwkv_train.training.launchers.children import die_with_parent
from rwkv_train.training.launchers.decide import decide
from rwkv_train.training.launchers.exit_statuses import stopped_by
from rwkv_train.training.launchers.given_flags import given_number, without_local_rank
from rwkv_train.training.launchers.launch import Launch
from rwkv_train.training.launchers.restarts import forbid_restart

if TYPE_CHECKING:
    from rwkv_train.training.distributed.ranks import Ranks


# The others are at most as late with the same refusal as launchers are.
_REFUSAL_SECONDS = 20.0


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of the program, as `_run_command` gives it.

    argv: the arguments, those of the process when None (console command `rwkv-train`).
    """
    status = _run_command(list(sys.argv[1:] if argv is None else argv))
    forbid_restart(status, variables())
    return status


def _run_command(given: list[str]) -> int:
    """Returns the exit status: 0 when the run has ended as asked, 2 for bad input, 1 when training
    itself cannot continue, 75 when a process hangs, 128 + n for signal n (`exit_statuses`).

    A fault is one line on stderr.  torch and its companions are imported only once the flags are
    known to be right, so that --help and a typing error answer at once.
    """
    began = time.perf_counter()
    try:
        try:
            words = without_local_rank(given, variables())
            arguments, notices = translate(words)
            config = load_config(arguments)
            check_fields(config)
            if config.train.plan:
                return _plan(config, notices)
            # Before torch's import, of which the number of devices is asked.
            prepare_threads()
            launch = _decide(config)
        except TrainerError as error:
            return _refuse_on_all_ranks(given, error)
        if launch.starts_children and launch.num_nodes == 1:
            _build_kernels(config)
        hardware = config.hardware
        seconds = hardware.dist_timeout, hardware.hang_timeout
        return _start(launch, given, seconds, _body(config, notices, began))
    except TrainerError as error:
        print(f"error: {error.in_one_line()}", file=sys.stderr)
        return exit_status(error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: the name {str(error.filename)[:60]}... is too long", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the newest checkpoint", file=sys.stderr)
        return stopped_by(signal.SIGINT)


def _plan(config: RunConfig, notices: list[str]) -> int:
    """Prints the plan, where several processes were started as the first of them."""
    from rwkv_train.training.start.plan_only import gpu_models, print_plan

    hardware = config.hardware
    cards = max(1, len(gpu_models())) if hardware.accelerator != "cpu" else 1
    launch = decide(variables(), hardware.devices, hardware.num_nodes, lambda: cards)
    if launch.rank == 0:
        print_plan(config, notices, launch)
    return 0


def _decide(config: RunConfig) -> Launch:
    """Returns who this process is; raises ConfigError for variables and flags that disagree."""
    hardware = config.hardware
    launch = decide(
        variables(), hardware.devices, hardware.num_nodes, lambda: _count_devices(config)
    )
    if config.train.train_stage == 1 and launch.starts_children:
        # Initial weights are one process's work.
        return dataclasses.replace(
            launch, world_size=1, local_size=1, num_nodes=1, starts_children=False
        )
    return launch


def _count_devices(config: RunConfig) -> int:
    """Returns how many processes this machine gets when nobody says it."""
    if config.hardware.accelerator == "cpu":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _build_kernels(config: RunConfig) -> None:
    """Builds what this process and those that it is about to start need, for nobody to wait."""
    from rwkv_train.training.start.build_kernels import build_ahead

    build_ahead(config)


def _start(
    launch: Launch,
    argv: list[str],
    seconds: tuple[float | None, float],
    body: Callable[[Ranks], int],
    refusal: TrainerError | None = None,
) -> int:
    """Returns the exit status of a run as one of its processes.

    seconds: of --dist_timeout and --hang_timeout; refusal: as of `Ranks`.
    """
    if launch.parent:
        die_with_parent(launch.parent)
    remember_ranks(launch.rank, launch.local_rank)
    if launch.world_size > 1:
        quiet_connections()
    from rwkv_train.training.distributed.ranks import Ranks

    return Ranks(launch, argv, *seconds, refusal).run(body)


def _refuse_on_all_ranks(argv: list[str], error: TrainerError) -> int:
    """Returns the exit status of a refusal that came before anything was started.

    Of several processes that a launcher started one may be refused and wait for no other, and none
    for it. Raises the error where there is only one.
    """

    def refuse(ranks: Ranks) -> int:
        raise error

    launch = _decide_in_spite_of(argv)
    if launch is None or launch.world_size == 1 or launch.main_port == 0:
        # Nobody else has been started.
        raise error
    alone = dataclasses.replace(launch, starts_children=False)
    seconds = given_number(argv, "dist_timeout") or _REFUSAL_SECONDS
    return _start(alone, argv, (seconds, 0.0), refuse, error)


def _decide_in_spite_of(argv: list[str]) -> Launch | None:
    """Returns who this process is although its flags are wrong; None if that cannot be told."""
    numbers = given_number(argv, "devices"), given_number(argv, "num_nodes")
    # Without them too: they may be what is wrong.
    for devices, num_nodes in (numbers, (None, None)):
        with suppress(TrainerError):
            return decide(variables(), devices, num_nodes)
    return None


def _body(config: RunConfig, notices: list[str], began: float) -> Callable[[Ranks], int]:
    return lambda ranks: _run(config, notices, ranks, began)


def _run(config: RunConfig, notices: list[str], ranks: Ranks, began: float) -> int:
    """Prepares and runs what a configuration asks for, alone in its project folder.

    notices: lines about translated flags, printed once; began: when the program did, by
    `time.perf_counter`. Returns the exit status. Raises TrainerError.
    """
    from rwkv_train.training.distributed.file_transfer import ReceivedFiles
    from rwkv_train.training.start.prepare import prepare_run
    from rwkv_train.training.start.run_lock import STALE, RunLock
    from rwkv_train.training.start.state_copies import StateCopies

    launch = ranks.launch
    if launch.world_size > 1:
        hardware = dataclasses.replace(
            config.hardware, devices=launch.local_size, num_nodes=launch.num_nodes
        )
        config = dataclasses.replace(config, hardware=hardware)
    # One lock for all ranks: the first holds it while the others work for it.
    folder = Path(config.train.proj_dir)
    patience = STALE if launch.may_change else 0.0
    with (
        RunLock(folder, enabled=is_rank_zero(), patience=patience) as lock,
        # Inside: the last copy is of files in the folder.
        StateCopies(config, ranks) as copies,
        ReceivedFiles() as received,
    ):
        for call in (lock.release, copies.abandon, received.remove):
            ranks.leaving.at_leave(call)
        prepared = prepare_run(config, notices, lock, ranks, received, copies)
        if prepared is None:
            return 0
        # Not above: Lightning reads when it is imported what `prepare_run` sets, and a run that is
        # refused need not wait for it.
        from rwkv_train.training.out_of_memory import out_of_memory_explained
        from rwkv_train.training.run import run

        explained = out_of_memory_explained(prepared.config, prepared.memory)
        with ranks.leaving.noting_faults(), explained:
            return run(prepared, ranks, received, began)


if __name__ == "__main__":
    sys.exit(main())
