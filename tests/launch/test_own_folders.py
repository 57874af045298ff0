"""Machines without a shared folder begin at the newest state of any of them."""

from __future__ import annotations

import shutil
import signal
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
    return start_all("train.py", lines_apart(flags, folders, **changes))


def lines_apart(
    flags: Callable[..., list[str]], folders: list[Path], **changes: object
) -> list[tuple[list[str], dict[str, str]]]:
    """Command line and variables of each; a list in `changes` has what is different."""
    return [
        (
            flags(
                proj_dir=folder,
                devices=None,
                micro_bsz=2,
                **{k: v[i] if isinstance(v, list) else v for k, v in changes.items()},
            ),
            told,
        )
        for i, (folder, told) in enumerate(zip(folders, of_two_machines()))
    ]


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
    # A folder, as the two have written it to the disk that they shared.
    shutil.copytree(tmp_path / "out" / "rwkv-1.state", folders[holder] / "rwkv-1.state")
    shutil.copy(tmp_path / "out" / "rwkv-1.pth", folders[holder])
    left = [path.name for path in folders[1].glob("*")]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    place = tmp_path / "place"
    statuses, out, err = start_apart(flags, folders, strategy=strategy, state_copies=place)
    assert statuses == [0, 0], err
    assert f"machine {1 - holder} has no state of this run: receives rwkv-1.state (" in out
    assert "exact continuation at step 10" in out
    assert "training states are single files: rank 1 does not see the --proj_dir of rank 0" in out
    assert (folders[0] / "rwkv-final.state").is_file()
    assert loss_steps(folders[0]) == [10, 11]
    assert_same_weights(folders[0] / "rwkv-final.pth", tmp_path / "out" / "rwkv-final.pth")
    # What was received is gone, and rank zero alone writes.
    assert not list(temporary.iterdir())
    assert [path.name for path in folders[1].glob("*")] == left
    # Rank zero's state is that of the run, wherever it began.
    copied, own = (list_states(folder)[0] for folder in (place, folders[0]))
    assert copied.path.name == "rwkv-final.state" and copied.digest == own.digest


def test_a_machine_that_is_lost_is_made_up_by_its_partner_s_memory(
    flags: Callable[..., list[str]], tmp_path: Path
):
    whole = start("train.py", *flags(micro_bsz=2, devices=None), ranks=2)
    assert whole.returncode == 0, whole.stderr
    folders = [tmp_path / "first", tmp_path / "second"]
    # Each machine has a memory of its own.
    memory = [Path(f"/dev/shm/{tmp_path.parent.name}-{tmp_path.name}-{n}") for n in range(2)]
    given = {"save_every_steps": 2, "state_copies": [f"partner:{m}:keep_last=1" for m in memory]}
    lines = lines_apart(flags, folders, **given)
    try:
        moments = [f"copied:9:{memory[1]}", "step:1000"]
        killed = [([moment, "KILL", *line], told) for moment, (line, told) in zip(moments, lines)]
        statuses, out, err = start_all("tests.training.kill_at", killed)
        assert statuses[0] == -signal.SIGKILL and statuses[1] == 1, err
        assert "second copies in" in out and "of the partner machine (the last 1)" in out
        kept = [path.name for path in memory[1].glob("*.state")]
        assert len(kept) == 1 and not memory[0].exists()
        shutil.rmtree(folders[0])
        statuses, out, err = start_apart(flags, folders, **given)
        assert statuses == [0, 0], err
        assert f"machine 0 has no state of this run: receives {kept[0]} (" in out
        assert "exact continuation at step" in out and "is that of rank 1; rank 0 has none" in out
        assert_same_weights(folders[0] / "rwkv-final.pth", tmp_path / "out" / "rwkv-final.pth")
        # The memory is given back at the end.
        assert not [path for folder in memory for path in folder.glob("*")], list(
            memory[1].glob("*")
        )
    finally:
        for folder in memory:
            shutil.rmtree(folder, ignore_errors=True)
