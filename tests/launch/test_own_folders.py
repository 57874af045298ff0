"""Machines without a shared folder begin at the newest state of any of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_train.checkpoint.resume import list_states
from tests.training.runs import assert_same_weights, loss_steps, ranks_environment, start, start_all

pytestmark = pytest.mark.slow


def of_two_machines() -> list[dict[str, str]]:
    """The variables of two processes, each the only one of its machine."""
    place = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return [{**told, **place} for told in ranks_environment(2)]


def start_apart(
    flags: Callable[..., list[str]], folders: list[Path], **changes: object
) -> tuple[list[int], str, str]:
    calls = [
        (flags(**{"proj_dir": folder, "devices": None, "micro_bsz": 2, **changes}), told)
        for folder, told in zip(folders, of_two_machines())
    ]
    return start_all("train.py", calls)


@pytest.mark.parametrize(("strategy", "holder"), [("ddp", 1), ("deepspeed_stage_2", 0)])
def test_a_machine_without_the_state_is_sent_it_and_repeats_every_bit(
    flags: Callable[..., list[str]],
    tmp_path: Path,
    strategy: str,
    holder: int,
    monkeypatch: pytest.MonkeyPatch,
):
    """holder: the rank that has it; the first is an empty machine when it is not that one."""
    whole = start("train.py", *flags(micro_bsz=2, devices=None, strategy=strategy), ranks=2)
    assert whole.returncode == 0, whole.stderr
    folders = [tmp_path / "first", tmp_path / "second"]
    folders[holder].mkdir()
    for name in ("rwkv-1.state", "rwkv-1.pth"):
        shutil.copy(tmp_path / "out" / name, folders[holder])
    left = [path.name for path in folders[1].glob("*")]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    place = tmp_path / "place"
    statuses, out, err = start_apart(flags, folders, strategy=strategy, state_copies=place)
    assert statuses == [0, 0], err
    assert f"machine {1 - holder} has no state of this run: receives rwkv-1.state (" in out
    assert "exact continuation at step 10" in out
    assert loss_steps(folders[0]) == [10, 11]
    assert_same_weights(folders[0] / "rwkv-final.pth", tmp_path / "out" / "rwkv-final.pth")
    # What was received is gone, and rank zero alone writes.
    assert not list(temporary.iterdir())
    assert [path.name for path in folders[1].glob("*")] == left
    # Rank zero's state is that of the run, wherever it began.
    copied, own = (list_states(folder)[0] for folder in (place, folders[0]))
    assert copied.path.name == "rwkv-final.state" and copied.digest == own.digest
