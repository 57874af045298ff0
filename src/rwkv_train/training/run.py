"""The recipe of a run, a call a line: facts, configuration, origin, then training."""

from __future__ import annotations

from pathlib import Path

from rwkv_train.config.resolve.resolve import for_saving, resolve
from rwkv_train.config.schema import RunConfig
from rwkv_train.config.versions import VERSIONS
from rwkv_train.errors import ConfigError
from rwkv_train.training.distributed.collectives import FaultElsewhereError
from rwkv_train.training.environment import is_rank_zero, prepare_libraries
from rwkv_train.training.start.check_backend import check_backend
from rwkv_train.training.start.check_packages import check_packages
from rwkv_train.training.start.discover import discover
from rwkv_train.training.start.open_data import mask_notes, open_samples
from rwkv_train.training.start.resume_point import find_origin
from rwkv_train.training.start.run_lock import RunLock


def run(config: RunConfig, notices: list[str]) -> int:
    """Trains, or writes initial weights at stage 1. Returns the exit status.

    notices: lines about translated flags, printed once. Every rank of every node calls this with
    the same configuration. Raises TrainerError.
    """
    folder = Path(config.train.proj_dir)
    with RunLock(folder, wanted=is_rank_zero()) as lock:
        return _run(config, notices, lock)


def _run(given: RunConfig, notices: list[str], lock: RunLock) -> int:
    origin = find_origin(given.train)
    config, derived = resolve(given, discover(given, origin))
    check_packages(config)
    check_backend(config)
    samples = None if config.train.train_stage == 1 else open_samples(config)
    if samples is not None:
        derived += mask_notes(samples)
    prepare_libraries(config.hardware.accelerator)
    _make_folder(config.train.proj_dir)
    # A new folder; one that was there has been locked before it was read.
    lock.acquire()
    if samples is None:
        from rwkv_train.training.start.initial_weights import write_initial_weights

        write_initial_weights(config, origin, notices + derived)
        return 0
    from rwkv_train.training.fit import fit
    from rwkv_train.training.start.initial_weights import save_initial_weights

    if is_rank_zero():
        for line in notices:
            print(line)
        if origin.kind == "fresh" and config.train.train_stage is None:
            # As RWKV-LM: what a run starts from is on disk, in the training precision.
            save_initial_weights(config, origin)
            origin = find_origin(config.train)
    try:
        return fit(
            config,
            VERSIONS[config.model.rwkv_version].conventions,
            origin,
            samples,
            derived=derived,
            saved_config=for_saving(config, given),
        )
    except FaultElsewhereError:
        # rank zero tells the user
        return 1


def _make_folder(proj_dir: str) -> None:
    folder = Path(proj_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise ConfigError(
            f"--proj_dir {proj_dir} cannot be written ({reason}); choose a folder of your own"
        ) from error
