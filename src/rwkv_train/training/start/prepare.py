"""Prepares a run, a call a line: resume point, files, configuration, checks, folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rwkv_train.config.copy_places import copy_folders
from rwkv_train.config.resolve.resolve import for_saving, resolve
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.schema import RunConfig
from rwkv_train.data.tokenize.tokenizer_files import TokenizerRecord, write_record
from rwkv_train.training.distributed.extensions import check_extensions, prepare_extensions
from rwkv_train.training.distributed.file_transfer import ReceivedFiles
from rwkv_train.training.distributed.ranks import Ranks
from rwkv_train.training.environment import is_rank_zero, prepare_libraries
from rwkv_train.training.live.live_plan import LivePlan
from rwkv_train.training.start.build_kernels import OperatorBackend, build_for
from rwkv_train.training.start.changes import with_changes
from rwkv_train.training.start.check_machine import check_backend, check_packages, make_folder
from rwkv_train.training.start.check_memory import check_memory
from rwkv_train.training.start.check_tokenizer import compare_tokenizers, tokenizer_of_data
from rwkv_train.training.start.data_agreement import read_by_all, require_same_sizes
from rwkv_train.training.start.discover import discover
from rwkv_train.training.start.fingerprint import require_agreement, run_fingerprint
from rwkv_train.training.start.initial_weights import save_initial_weights, write_initial_weights
from rwkv_train.training.start.memory_forecast import MemoryForecast
from rwkv_train.training.start.open_data import RunSamples, mask_notes, open_samples
from rwkv_train.training.start.restored_files import restore_files
from rwkv_train.training.start.resume_point import Fresh, FromState, ResumePoint, find_resume_point
from rwkv_train.training.start.run_identity import run_id
from rwkv_train.training.start.run_lock import RunLock
from rwkv_train.training.start.shared_start import find_shared_start
from rwkv_train.training.start.state_copies import StateCopies


@dataclass(frozen=True)
class Prepared:
    """Everything a run starts with.

    config: resolved; saved_config: what proj_dir/config.yaml holds, which repeats the run.
    derived: what was worked out, a line each. lock: of the project folder. operators: the backends
    that serve. lineage: what states tell of run and data. tokenizer: of the data, None: not known.
    live: what the model is asked while it trains. memory: what the run is predicted to take.
    reload_seconds: that finding and reading the state took. copies: of its states, in other places.
    """

    config: ResolvedConfig
    saved_config: RunConfig
    point: ResumePoint
    samples: RunSamples
    derived: list[str]
    lock: RunLock
    operators: list[OperatorBackend]
    lineage: Mapping[str, Any]
    tokenizer: TokenizerRecord | None
    live: LivePlan
    memory: MemoryForecast
    reload_seconds: float
    copies: StateCopies


def prepare_run(
    given: RunConfig,
    notices: list[str],
    lock: RunLock,
    ranks: Ranks,
    received: ReceivedFiles,
    copies: StateCopies,
) -> Prepared | None:
    """Returns a run that can start; None at stage 1, whose initial weights are then written.

    notices: lines about translated flags, printed once; ranks: all of them get here, and agree,
    before any of them writes; received: keeps what rank zero has sent; copies: of states, in other
    places. Every rank calls this with the same configuration. Raises TrainerError before anything
    is written, but for a disk that fails.
    """
    # In this order: what lies on disk completes the configuration; the complete one says what to
    # check and to read; the folder is made last, so that a refusal leaves none behind.
    began = time.perf_counter()
    places = copy_folders(given.safety.state_copies)
    point = find_shared_start(given.train, ranks, received, places)
    reload_seconds = time.perf_counter() - began
    read = partial(discover, given, point, ranks.launch.may_change)
    discovered, opened = read_by_all(ranks.store, "files", read)
    require_same_sizes(ranks.store, opened)
    config, derived = resolve(given, discovered)
    tokenizer = tokenizer_of_data(config.data.tokenizer, opened)
    derived += compare_tokenizers(given, point, config.model.vocab_size, tokenizer)
    memory = check_memory(config)
    derived += memory.note()
    check_packages(config)
    check_backend(config)
    samples = None
    if config.train.train_stage != 1:
        check_extensions(config.hardware)
        assert opened is not None, "check_fields refuses training without data"
        samples = read_by_all(ranks.store, "samples", partial(open_samples, config, opened))
        point = with_changes(point, config, samples.data, samples.validation)
        derived += mask_notes(samples)
        live = LivePlan(config, tokenizer, samples.training)
        ranks.leaving.at_leave(live.close)
        if ranks.launch.world_size > 1:
            require_agreement(ranks.store, run_fingerprint(config, point, samples))
    run = run_id(point, Path(config.train.proj_dir))
    copies.refuse_other_runs(run)
    copies.require_memory(config, memory.on_host())
    prepare_libraries(config.hardware.accelerator)
    ranks.all_there()
    make_folder(config.train.proj_dir)
    # A new folder; one that was there has been locked before it was read.
    lock.acquire()
    if samples is None:
        write_initial_weights(config, point, notices + derived)
        if tokenizer is not None and is_rank_zero():
            write_record(Path(config.train.proj_dir), tokenizer)
        return None
    if is_rank_zero():
        point = restore_files(point, Path(config.train.proj_dir), places, run)
        for line in notices:
            print(line)
        if isinstance(point, Fresh) and config.train.train_stage is None:
            # As RWKV-LM: what a run starts from is on disk, in the training precision.
            save_initial_weights(config, point)
            point = find_resume_point(config.train)
    lineage = {"run": run, "data": samples.identities()}
    # The last thing before steps, and after all that can refuse the run: it takes minutes.
    operators = build_for(config)
    prepare_extensions(config.hardware)
    saved = for_saving(config, given)
    return Prepared(
        config,
        saved,
        point,
        samples,
        derived,
        lock,
        operators,
        lineage,
        tokenizer,
        live,
        memory,
        reload_seconds if isinstance(point, FromState) else 0.0,
        copies,
    )
