"""Ranks that see one state verify it together; what one of them finds counts for all."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_train.checkpoint import state_manifest
from rwkv_train.checkpoint.names import PART_LIST
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.checkpoint.state_manifest import PartFile, StateManifest
from rwkv_train.config.schema import TrainConfig
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.training.distributed.file_transfer import ReceivedFiles
from rwkv_train.training.distributed.rank_store import RemoteRankError
from rwkv_train.training.start import joint_verification
from rwkv_train.training.start.joint_verification import JointVerification, share_of_parts
from rwkv_train.training.start.resume_point import FromState
from rwkv_train.training.start.shared_start import find_shared_start
from tests.checkpoint.small_states import save_small_folder, small_state
from tests.training.start.test_shared_start import both

PARTS = 5


class Digests:
    """Which rank has digested which file, and faults of what single ranks read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, str]] = []
        self.damaged_for: set[tuple[int, str]] = set()
        self._own = threading.local()
        self._digest = state_manifest.file_digest

    def act_as(self, rank: int) -> None:
        """Says whose this thread is."""
        self._own.rank = rank

    def __call__(self, path: Path) -> str:
        seen = getattr(self._own, "rank", None), f"{path.parent.name}/{path.name}"
        if seen[0] is not None:
            self.read.append(seen)
        return "" if seen in self.damaged_for else self._digest(path)

    def times(self, state: str) -> Counter[str]:
        """How often each file of a state was digested."""
        names = (name.partition("/") for _, name in self.read)
        return Counter(name for folder, _, name in names if folder == state)


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> Digests:
    """Watches them; every rank reads with its own thread, so that it can be told."""
    found = Digests()
    monkeypatch.setattr(state_manifest, "file_digest", found)

    class Here:
        """Instead of a pool of threads."""

        def __init__(self, threads: int) -> None:
            assert threads >= 1

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *fault: None  # noqa: E731
        map = staticmethod(map)

    monkeypatch.setattr(state_manifest, "ThreadPoolExecutor", Here)
    return found


@pytest.fixture
def begin(tmp_path: Path, digests: Digests) -> Callable[..., list[Any]]:
    """Where ranks begin. folders: of each of them, "out" by default."""

    def find(ranks: int, local_size: int, folders: list[str] | None = None) -> list[Any]:
        def call(own: Any) -> Any:
            digests.act_as(own.launch.rank)
            folder = tmp_path / (folders or ["out"] * ranks)[own.launch.rank]
            train = replace(TrainConfig(), proj_dir=str(folder))
            with ReceivedFiles() as received:
                return find_shared_start(train, own, received)

        return both(call, local_size, ranks)

    return find


def save(folder: Path, step: int, parts: int = PARTS) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"rwkv-step-{step}.state"
    save_small_folder(path, small_state(step, run="one"), parts)
    return path


def steps(points: list[Any]) -> list[int]:
    assert all(isinstance(point, FromState) for point in points), points
    return [point.state["step"] for point in points]


def part(number: int) -> str:
    return f"__{number}_0.distcp"


def test_shares_are_all_parts_once_with_the_bytes_spread():
    sizes = {part(number): size for number, size in enumerate((70, 50, 40, 30, 20, 10))}
    files = {name: PartFile(size, "") for name, size in {**sizes, PART_LIST: 5}.items()}
    manifest = StateManifest(files, {}, "")
    # by hand: 70, then 50, 40; 30 to the 40, 20 to the 50; 10 to one that has 70
    shares = [share_of_parts(manifest, place, 3) for place in range(3)]
    assert all(share[0] == PART_LIST for share in shares)
    assert sorted(name for share in shares for name in share[1:]) == sorted(sizes)
    assert sorted(sum(sizes[n] for n in share[1:]) for share in shares) == [70, 70, 80]
    # more ranks than parts: the last have nothing but the list to read
    assert [len(share_of_parts(manifest, place, 8)) for place in range(8)] == [2] * 6 + [1] * 2
    assert {*share_of_parts(manifest, 0, 1)} == {*files}


@pytest.mark.parametrize(("ranks", "local_size"), [(4, 4), (4, 2), (3, 1), (2, 2)])
def test_every_part_is_digested_once_a_machine(
    begin: Callable, digests: Digests, tmp_path: Path, ranks: int, local_size: int
):
    save(tmp_path / "out", 8)
    assert steps(begin(ranks, local_size)) == [8] * ranks
    found = digests.times("rwkv-step-8.state")
    assert found.pop(PART_LIST) == ranks
    assert found == {part(number): ranks // local_size for number in range(PARTS)}


def test_machines_with_one_disk_digest_every_part_once(
    begin: Callable, digests: Digests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(joint_verification, "file_system", lambda folder: "nfs4")
    save(tmp_path / "out", 8)
    assert steps(begin(4, 2)) == [8] * 4
    found = digests.times("rwkv-step-8.state")
    assert {found[part(number)] for number in range(PARTS)} == {1}


@pytest.mark.parametrize("finder", [0, 2])
def test_what_one_rank_finds_makes_all_take_the_older_state(
    begin: Callable, digests: Digests, tmp_path: Path, finder: int
):
    for step in (4, 8):
        save(tmp_path / "out", step)
    for number in range(PARTS):
        digests.damaged_for.add((finder, f"rwkv-step-8.state/{part(number)}"))
    points = begin(3, 3)
    assert steps(points) == [4] * 3
    for rank, point in enumerate(points):
        (told,) = [note for note in point.notes if "rwkv-step-8.state" in note]
        assert "passed over: " in told and "is damaged: its part __" in told
        assert (f"(as rank {finder} found)" in told) == (rank != finder)


def test_a_weight_that_is_not_finite_is_found_whoever_has_its_part(begin: Callable, tmp_path: Path):
    save(tmp_path / "out", 4)
    for element in range(6):
        bad = small_state(8, run="one")
        bad["weights"]["a"].view(-1)[element] = torch.inf
        save_small_folder(tmp_path / "out" / "rwkv-step-8.state", bad, PARTS)
        points = begin(3, 3)
        assert steps(points) == [4] * 3
        assert all("a is not finite" in point.notes[0] for point in points)


def test_a_copy_on_another_machine_is_verified_there(begin: Callable, tmp_path: Path):
    # the same state twice, byte for byte but for one that the second disk has lost
    path = save(tmp_path / "first", 8)
    copy = tmp_path / "second" / path.name
    copy.mkdir(parents=True)
    for file in path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    lost = copy / part(3)
    lost.write_bytes(lost.read_bytes()[:-1] + b"?")
    points = begin(2, 1, ["first", "second"])
    # the damaged one is not used, neither there nor anywhere
    assert isinstance(points[1], CheckpointError) and "part __3_0" in str(points[1])
    assert isinstance(points[0], RemoteRankError)


def test_ranks_with_other_lists_of_states_wait_for_nobody(begin: Callable, tmp_path: Path):
    for step in (4, 8):
        save(tmp_path / "first", step)
        save(tmp_path / "second", step)
    # one more on the second machine, torn, and another that nobody completed
    torn = save(tmp_path / "second", 12) / part(0)
    torn.write_bytes(torn.read_bytes()[:-1])
    (save(tmp_path / "second", 16) / "manifest.json").unlink()
    points = begin(3, 1, ["first", "second", "second"])
    assert steps(points) == [8] * 3
    assert len([note for note in points[2].notes if note.startswith("passed over")]) == 2


def test_a_rank_that_is_refused_leaves_nobody_waiting(digests: Digests, tmp_path: Path):
    path = save(tmp_path / "out", 8)

    def call(own: Any) -> int:
        digests.act_as(own.launch.rank)
        with JointVerification(own) as verify:
            if own.launch.rank == 1:
                raise ConfigError("it has other flags")
            return load_state(path, verify)["step"]

    first, second, third = both(call, 3, 3)
    assert (first, third) == (8, 8) and isinstance(second, ConfigError)
    assert digests.times(path.name)[part(0)] == 1
