"""One save of several ranks: complete, or nothing, and the rank named that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore, PrefixStore

from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.checkpoint.resume import list_states, load_state
from rwkv_train.checkpoint.state_manifest import PartFile
from rwkv_train.files import remove_partial_files
from rwkv_train.training.checkpointing import folder_save
from rwkv_train.training.checkpointing.folder_save import FolderSave, SavePlace
from rwkv_train.training.checkpointing.part_board import PartBoard
from rwkv_train.training.checkpointing.save_job import SaveJob, SaveSteps
from rwkv_train.training.distributed.rank_store import RankStore
from tests.checkpoint.small_states import publish_parts, save_small_folder, shares, small_state

RANKS = 3


class Ranks:
    """Three ranks in the threads of one process, which save a state of step 8."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rwkv-step-8.state"
        self.store = HashStore()
        self.state = small_state(8)
        self.partial = folder / "rwkv-step-8.state.abc-1.partial"

    def save(self, ranks: Sequence[int] = range(RANKS), **places: Path) -> dict[int, SaveJob]:
        """The ended jobs of these ranks; places: other folders of some, as of other machines."""
        jobs = {rank: self._job(rank, places.get(f"rank{rank}", self.partial)) for rank in ranks}
        for job in jobs.values():
            assert job.wait(60)
        return jobs

    def _job(self, rank: int, folder: Path) -> SaveJob:
        plain = {k: v for k, v in self.state.items() if k not in ("weights", "moments")}
        board = PartBoard(
            PrefixStore("parts", self.store),
            RankStore(PrefixStore("ranks", self.store), rank=rank, world_size=RANKS),
        )

        def complete(parts: Sequence[PartFile]) -> None:
            publish_parts(self.path, folder, parts, plain)

        save = FolderSave(
            board,
            rank,
            SavePlace(1, self.path, folder),
            [*shares(self.state, rank, RANKS)],
            None if rank else plain,
            None if rank else complete,
        )
        return SaveJob(self.path, SaveSteps(save.write, save.give_up), 0)


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    """The ranks, in a folder with an older state, which is there and sound at the end."""
    save_small_folder(tmp_path / "rwkv-step-4.state", small_state(4), RANKS)
    yield Ranks(tmp_path)
    assert load_state(tmp_path / "rwkv-step-4.state")["step"] == 4


def left(ranks: Ranks) -> set[str]:
    return {path.name for path in ranks.path.parent.iterdir()}


def fail(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> None:
    """Fills the disk of the ranks for which `fails` says so, at every attempt."""
    write = folder_save.write_part

    def limited(folder: Path, rank: int, *rest: object) -> Path:
        part = write(folder, rank, *rest)
        if fails(rank):
            raise OSError(28, "No space left on device")
        return part

    monkeypatch.setattr(folder_save, "write_part", limited)


def test_all_ranks_together_write_a_state(ranks: Ranks):
    jobs = ranks.save()
    assert not any(job.fault for job in jobs.values())
    assert left(ranks) == {"rwkv-step-4.state", "rwkv-step-8.state"}
    found = load_state(ranks.path)
    assert content_digest(dict(found["weights"])) == content_digest(ranks.state["weights"])
    assert [file.step for file in list_states(ranks.path.parent)] == [8, 4]


@pytest.mark.parametrize("full", [0, 2])
def test_a_full_disk_of_any_rank_leaves_nothing(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], full: int
):
    fail(monkeypatch, lambda rank: rank == full)
    jobs = ranks.save()
    # the first rank does not try again what another one has tried three times
    assert capsys.readouterr().err.count("save 2 of 3 failed") == 1
    words = str(jobs[0].fault)
    assert f"__{full}_0.distcp: No space left on device" in words
    assert ("saving failed 3 times in a row: rank 2: " in words) == (full == 2)
    assert left(ranks) == {"rwkv-step-4.state"}


def test_a_part_that_failed_twice_is_written(ranks: Ranks, monkeypatch: pytest.MonkeyPatch):
    tried: list[int] = []
    fail(monkeypatch, lambda rank: rank == 1 and len(tried) < 2 and not tried.append(1))
    assert not any(job.fault for job in ranks.save().values())
    assert tried == [1, 1] and load_state(ranks.path)["step"] == 8


def test_a_value_that_is_not_finite_on_any_rank_refuses_the_save(ranks: Ranks):
    # the last elements are the last rank's
    ranks.state["moments"]["exp_avg"] = {"a": torch.full((2, 3), torch.inf)}
    ranks.state["moments"]["exp_avg"]["a"][0] = 0
    jobs = ranks.save()
    assert jobs[0].is_refused and "moments.exp_avg.a holds NaN or infinity" in str(jobs[0].fault)
    assert left(ranks) == {"rwkv-step-4.state"}


def test_a_rank_that_is_lost_is_named_and_the_next_start_cleans_up(ranks: Ranks):
    PrefixStore("ranks", ranks.store).set("left/1", "1")
    jobs = ranks.save([0, 2])
    assert "rank 1 has left without its part" in str(jobs[0].fault)
    assert not jobs[2].fault and not ranks.path.exists()
    remove_partial_files(ranks.path.parent)
    assert left(ranks) == {"rwkv-step-4.state"}


def test_a_part_that_went_to_another_machines_disk_is_missed(ranks: Ranks, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere.partial"
    jobs = ranks.save(rank1=elsewhere)
    assert "rank 1 has written its part, and " in str(jobs[0].fault)
    assert "--state_format file" in str(jobs[0].fault) and not ranks.path.exists()


def test_a_part_is_whole_although_the_store_did_not_answer_at_first(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
):
    post, tried = PartBoard.post, []

    def unreliable(board: PartBoard, save: int, outcome: object) -> None:
        tried.append(board)
        if tried.count(board) == 1:
            raise RuntimeError("connection reset")
        post(board, save, outcome)

    monkeypatch.setattr(PartBoard, "post", unreliable)
    assert not any(job.fault for job in ranks.save().values())
    found = load_state(ranks.path)
    assert content_digest(dict(found["weights"])) == content_digest(ranks.state["weights"])
