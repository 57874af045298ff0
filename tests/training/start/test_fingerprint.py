"""Ranks that would train something else than rank zero are found, and named with what differs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from torch.distributed import HashStore

from rwkv_train.config.load import load_config
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.errors import ConfigError
from rwkv_train.training.distributed.rank_store import RankStore, RemoteRankError
from rwkv_train.training.start.discover import discover
from rwkv_train.training.start.fingerprint import (
    first_difference,
    require_agreement,
    run_fingerprint,
)
from rwkv_train.training.start.open_data import open_samples
from rwkv_train.training.start.resume_point import find_resume_point


def fingerprint(words: list[str]) -> dict[str, str]:
    given = load_config(words)
    point = find_resume_point(given.train)
    discovered, opened = discover(given, point)
    config, _ = resolve(given, discovered)
    assert opened is not None, "the tests train on data"
    return run_fingerprint(config, point, open_samples(config, opened))


def test_equal_ranks_agree(flags):
    own = fingerprint(flags())
    assert first_difference([own, dict(own), dict(own)], ["a", "b", "b"]) is None
    # Where things lie may differ, and what rank zero alone does.
    assert fingerprint(flags(num_workers=3, plot=1)) == own


def test_the_first_difference_names_rank_host_and_both_values():
    first = {"step": "16", "weights": "a"}
    message = first_difference([first, first, {"step": "0", "weights": "b"}], ["one", "two", "six"])
    assert message is not None and message.startswith("rank 2 on six differs from rank 0 on one")
    assert "in step: 0 there, 16 here" in message and "\n" not in message
    missing = first_difference([first, {"step": "16"}], ["one", "two"])
    assert missing is not None and "in weights: none there, a here" in missing


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr_init": "2e-3"}, "--lr_init"),
        ({"random_seed": 5}, "--random_seed"),
        ({"micro_bsz": 2}, "length of the run"),
        ({"dropout": 0.1}, "--dropout"),
        ({"val_data_file": "{corpus}_val"}, "validation data"),
        ({"data_file": "{corpus}_val"}, "training data"),
    ],
)
def test_other_flags_and_other_data_differ(flags, corpus: Path, changes, named: str):
    given = {name: str(value).format(corpus=corpus) for name, value in changes.items()}
    message = first_difference(
        [fingerprint(flags(exit_tokens=1500)), fingerprint(flags(exit_tokens=1500, **given))],
        ["a", "b"],
    )
    assert message is not None and f" in {named}: " in message


def test_a_rank_that_sees_no_state_or_another_one_differs(flags, run_training, tmp_path: Path):
    assert run_training(max_steps=5) == 0
    resumes = fingerprint(flags())
    elsewhere = fingerprint(flags(proj_dir=tmp_path / "empty"))
    message = first_difference([resumes, elsewhere], ["a", "b"])
    assert message is not None
    assert "in resume point: new initial weights there, state of rwkv-0.state here" in message
    # The same step of another run.
    other = tmp_path / "other"
    assert run_training(max_steps=5, proj_dir=other, random_seed=1) == 0
    message = first_difference([resumes, fingerprint(flags(proj_dir=other))], ["a", "b"])
    assert message is not None and " in weights: " in message


def test_all_ranks_leave_and_rank_zero_tells_why():
    store, errors = HashStore(), {}

    def take_part(rank: int) -> None:
        ranks = RankStore(store, rank=rank, world_size=2, host=f"host{rank}", seconds=20)
        try:
            require_agreement(ranks, {"step": str(16 * (1 - rank))})
        except (ConfigError, RemoteRankError) as error:
            errors[rank] = error

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(errors[0], ConfigError) and isinstance(errors[1], RemoteRankError)
    assert "rank 1 on host1" in str(errors[0]) and errors[1].fault.status == 2


def test_a_rank_alone_agrees_with_itself():
    require_agreement(RankStore(), {"step": "3"})
