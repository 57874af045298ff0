"""Machines without a shared folder begin where rank zero begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
def test_a_machine_without_the_state_is_sent_it_and_repeats_every_bit(
    flags: Callable[..., list[str]], tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
):
    whole = start("train.py", *flags(micro_bsz=2, devices=None, strategy=strategy), ranks=2)
    assert whole.returncode == 0, whole.stderr
    folders = [tmp_path / "first", tmp_path / "second"]
    folders[0].mkdir()
    # Both processes have written it, into the folder that they share.
    shutil.copytree(tmp_path / "out" / "rwkv-1.state", folders[0] / "rwkv-1.state")
    shutil.copy(tmp_path / "out" / "rwkv-1.pth", folders[0])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    statuses, out, err = start_apart(flags, folders, strategy=strategy)
    assert statuses == [0, 0], err
    assert "machine 1 has no state of this run: receives rwkv-1.state (" in out
    assert "exact continuation at step 10" in out
    assert "training states are single files: rank 1 does not see the --proj_dir of rank 0" in out
    assert (folders[0] / "rwkv-final.state").is_file()
    assert loss_steps(folders[0]) == [10, 11]
    assert_same_weights(folders[0] / "rwkv-final.pth", tmp_path / "out" / "rwkv-final.pth")
    # What was received is gone, and rank zero alone writes.
    assert not list(temporary.iterdir()) and not list(folders[1].iterdir())
