"""Trains an RWKV language model: `python train.py --help` lists the flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.load import load_config
from rwkv_train.config.rwkv_lm.flags import translate
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import TrainerError, TrainingError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 when the run has ended as asked, 2 for bad input, 1 when training
    itself cannot continue, 130 for Ctrl-C.

    argv: the arguments, those of the process when None (console command `rwkv-train`).

    A fault is one line on stderr.  torch and its companions are imported only once the flags are
    known to be right, so that --help and a typing error answer at once.
    """
    try:
        arguments, notices = translate(sys.argv[1:] if argv is None else argv)
        config = load_config(arguments)
        check_fields(config)
        return _run(config, notices)
    except TrainerError as error:
        print(f"error: {error.in_one_line()}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the newest checkpoint", file=sys.stderr)
        return 130


def _run(config: RunConfig, notices: list[str]) -> int:
    """Prepares and runs what a configuration asks for, alone in its project folder.

    notices: lines about translated flags, printed once. Returns the exit status. Raises
    TrainerError.
    """
    from rwkv_train.training.distributed.rank_store import RankStore
    from rwkv_train.training.environment import is_rank_zero
    from rwkv_train.training.start.prepare import prepare_run
    from rwkv_train.training.start.run_lock import RunLock

    # One lock for all ranks: the first holds it while the others work for it.
    with RunLock(Path(config.train.proj_dir), enabled=is_rank_zero()) as lock:
        prepared = prepare_run(config, notices, lock, RankStore())
        if prepared is None:
            return 0
        # Not above: Lightning reads when it is imported what `prepare_run` sets, and a run that is
        # refused need not wait for it.
        from rwkv_train.training.run import run

        return run(prepared)


if __name__ == "__main__":
    sys.exit(main())
