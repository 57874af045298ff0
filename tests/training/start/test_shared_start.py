"""Ranks without the resume point of rank zero get it; what another run has left is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import HashStore, PrefixStore

from rwkv_train.checkpoint.resume import load_state, save_state
from rwkv_train.config.schema import TrainConfig
from rwkv_train.errors import CheckpointError, ConfigError, TrainerError
from rwkv_train.training.distributed import file_transfer
from rwkv_train.training.distributed.file_transfer import ReceivedFiles, SentFile, share_file
from rwkv_train.training.distributed.rank_store import RankStore, RemoteRankError
from rwkv_train.training.launchers.launch import Launch
from rwkv_train.training.start.resume_point import ResumePoint
from rwkv_train.training.start.shared_start import find_shared_start, find_shared_state
from tests.checkpoint.small_states import save_small_folder, small_state

WEIGHT = "blocks.0.att.key.weight"


def write_state(folder: Path, step: int, run: str = "one", **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"step": step, "run": run, "weights": {WEIGHT: torch.full((3, 3), step / 7)}, **more}
    path = folder / f"rwkv-step-{step}.state"
    save_state(path, {**content, "optimizer": "adam", "moments": {}, "optimizer_steps": {}})
    return path


def write_weights(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({WEIGHT: torch.full((3, 3), value), "emb.weight": torch.ones(4, 3)}, path)
    return path


def both(call: Callable[[Any], Any], local_size: int = 1, world_size: int = 2) -> list[Any]:
    """Returns what `call` returns or raises with each of the ranks, those of machines in turn."""
    store = HashStore()

    def take_part(rank: int) -> Any:
        own = RankStore(store, rank=rank, world_size=world_size, host="host", seconds=20)
        launch = Launch(
            "test",
            world_size=world_size,
            rank=rank,
            local_rank=rank % local_size,
            local_size=local_size,
            node_rank=rank // local_size,
            num_nodes=world_size // local_size,
        )
        ranks = SimpleNamespace(
            launch=launch, store=own, connection=lambda name: PrefixStore(name, store)
        )
        try:
            return call(ranks)
        except TrainerError as error:
            # As `Ranks` does.
            own.report(str(error), 2)
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(take_part, range(world_size)))


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., list[Any]]:
    """Finds where two ranks begin, whose folders are first and second."""

    def find(**given: Any) -> list[ResumePoint | TrainerError]:
        def call(ranks: Any) -> ResumePoint:
            name = ("first", "second")[ranks.launch.rank]
            train = replace(TrainConfig(), proj_dir=str(tmp_path / name), **given)
            with ReceivedFiles() as received:
                point = find_shared_start(train, ranks, received, [tmp_path / "place"])
                if point.kind != "fresh":
                    # Mapped, and used after the file is gone.
                    point.load()
                return point

        return both(call)

    return find


def places(points: list[ResumePoint]) -> list[tuple[str, Mapping[str, torch.Tensor]]]:
    return [(point.path.name, dict(point.shapes)) for point in points]


def test_an_empty_folder_is_sent_the_state(begin, tmp_path, capsys):
    write_state(tmp_path / "first", 16)
    first, second = begin()
    assert places([first]) == places([second])
    assert second.folder == tmp_path / "second" and not (tmp_path / "second").exists()
    assert torch.equal(second.state["weights"][WEIGHT], first.state["weights"][WEIGHT])
    assert not second.path.exists()
    assert "machine 1 has no state of this run: receives rwkv-step-16.state (" in (
        capsys.readouterr().out
    )


def test_a_copy_in_a_place_that_all_see_is_where_all_begin(begin, tmp_path, capsys):
    # Of a run on other machines, whose disks are not here.
    write_state(tmp_path / "place", 16)
    first, second = begin()
    assert first.path == second.path == tmp_path / "place" / "rwkv-step-16.state"
    assert "receives" not in capsys.readouterr().out
    # One of them has an older state of its own, as after a copy that was made since.
    for name in ("first", "second"):
        write_state(tmp_path / name, 8)
        first, second = begin()
        assert places([first]) == places([second]) and first.path.parent.name == "place"


def test_a_copy_gives_way_to_the_newer_state_of_rank_zero(begin, tmp_path, capsys):
    write_state(tmp_path / "place", 16)
    write_state(tmp_path / "first", 24)
    first, second = begin()
    assert places([first]) == places([second]) == [("rwkv-step-24.state", {WEIGHT: (3, 3)})]
    assert "machine 1 has no state of this run: receives rwkv-step-24" in capsys.readouterr().out


def test_a_newer_state_of_another_rank_is_taken_before_a_copy(begin, tmp_path):
    write_state(tmp_path / "place", 16)
    write_state(tmp_path / "second", 24)
    points = begin()
    assert [point.path.name for point in points] == ["rwkv-step-24.state"] * 2


def test_an_older_state_of_the_same_run_gives_way(begin, tmp_path):
    write_state(tmp_path / "first", 16)
    write_state(tmp_path / "second", 8)
    first, second = begin()
    assert places([first]) == places([second])
    assert (tmp_path / "second" / "rwkv-step-8.state").exists()


def test_the_newest_state_of_the_run_is_taken_from_whichever_machine_has_it(
    begin, tmp_path, capsys
):
    write_state(tmp_path / "first", 16)
    newer = write_state(tmp_path / "second", 24)
    first, second = begin()
    assert places([first]) == places([second]) and second.path == newer
    assert first.folder == tmp_path / "first" and first.notes == (
        "the newest state, rwkv-step-24.state, is that of rank 1; rank 0 has the older "
        "rwkv-step-16.state",
    )
    told = capsys.readouterr().out
    assert "machine 0 has no state of this run: receives rwkv-step-24.state (" in told
    assert told.endswith(" from rank 1\n")


@pytest.mark.parametrize("stage", [None, 3])
def test_an_empty_machine_that_became_the_first_gets_the_state_too(begin, tmp_path, stage):
    newer = write_state(tmp_path / "second", 24)
    first, second = begin(train_stage=stage)
    assert places([first]) == places([second]) and second.path == newer
    assert first.notes[0].endswith("is that of rank 1; rank 0 has none")
    # Nothing is written before all have agreed.
    assert not (tmp_path / "first").exists()


def test_of_equal_states_rank_zero_s_is_that_of_all(begin, tmp_path, capsys):
    for name in ("first", "second"):
        write_state(tmp_path / name, 16)
    first, second = begin()
    assert (first.path.parent.name, second.path.parent.name) == ("first", "second")
    assert first.notes == () and capsys.readouterr().out == ""


@pytest.mark.parametrize("step", [8, 16, 24], ids=["older", "same", "newer"])
def test_work_of_another_run_is_not_passed_over(begin, tmp_path, step):
    write_state(tmp_path / "first", 16)
    write_state(tmp_path / "second", step, "another")
    _, second = begin()
    # Which the fingerprint then compares.
    assert second.path == tmp_path / "second" / f"rwkv-step-{step}.state"


def test_copies_of_one_state_are_used_where_they_are(begin, tmp_path, capsys):
    path = write_state(tmp_path / "first", 16)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / path.name).write_bytes(path.read_bytes())
    _, second = begin()
    assert second.path == tmp_path / "second" / path.name
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("folder", [True, False], ids=["a folder", "a file"])
def test_a_model_that_only_rank_zero_has_is_sent(begin, tmp_path, monkeypatch, folder):
    model = write_weights(tmp_path / "models" / ("pytorch_model.bin" if folder else "base.pth"))
    if folder:
        (model.parent / "config.json").write_text('{"model_type": "rwkv7"}')
        model = model.parent
    is_here = Path.exists
    # The other machine has no such path.
    monkeypatch.setattr(Path, "exists", lambda p: p != model and is_here(p))
    real = find_shared_start.__globals__["find_resume_point"]

    def find(train: TrainConfig, places: Any, verify: Any) -> ResumePoint:
        if train.proj_dir.endswith("second"):
            raise CheckpointError("there is no such file")
        return real(train, places, verify)

    monkeypatch.setitem(find_shared_start.__globals__, "find_resume_point", find)
    first, second = begin(load_model=str(model))
    assert places([first]) == places([second]) and second.kind == "weights"


def test_a_frozen_base_is_sent_with_the_state(begin, tmp_path):
    base = write_weights(tmp_path / "models" / "base.pth")
    first, _ = begin(load_model=str(base), train_type="lora")
    write_state(tmp_path / "first", 16, base=first.load().base)
    first, second = begin(train_type="lora")
    assert first.base == base and second.base.name == "base.pth"
    assert places([first]) == places([second])


def test_a_fault_of_rank_zero_is_that_of_all(begin):
    first, second = begin(train_stage=3)
    assert isinstance(first, ConfigError) and isinstance(second, RemoteRankError)


def test_a_fault_of_another_rank_with_work_is_told(begin, tmp_path):
    write_state(tmp_path / "first", 16)
    write_state(tmp_path / "second", 8).write_bytes(b"damaged")
    first, second = begin()
    assert isinstance(second, CheckpointError) and isinstance(first, RemoteRankError)


def test_each_machine_receives_once_and_in_chunks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(file_transfer, "CHUNK_BYTES", 64)
    path = write_state(tmp_path / "first", 16)
    size = path.stat().st_size

    def call(ranks: Any) -> Path:
        rank = ranks.launch.rank
        own = path if rank < 2 else tmp_path / f"{rank}.state"
        with ReceivedFiles() as received:
            found = find_shared_state(own, ranks, received)
            assert size == found.stat().st_size and load_state(found)["step"] == 16
            ranks.store.gather("loaded", None)
            return found

    found = both(call, local_size=2, world_size=6)
    assert found[:2] == [path, path]
    assert found[2] == found[3] != found[4] == found[5]
    assert capsys.readouterr().out.count("machine ") == 2


def test_a_state_in_a_folder_is_sent_with_all_its_parts(tmp_path, capsys):
    path = tmp_path / "first" / "rwkv-step-16.state"
    path.parent.mkdir()
    save_small_folder(path, small_state(16), 3)

    def call(ranks: Any) -> int:
        own = path if ranks.launch.rank == 0 else tmp_path / "rwkv-step-16.state"
        with ReceivedFiles() as received:
            found = load_state(find_shared_state(own, ranks, received))
            ranks.store.gather("loaded", None)
            return found["weights"]["a"].tolist()

    assert both(call) == [small_state(16)["weights"]["a"].tolist()] * 2
    assert "receives rwkv-step-16.state" in capsys.readouterr().out


def test_a_file_that_arrives_damaged_is_refused(tmp_path, monkeypatch):
    path = write_state(tmp_path / "first", 16)
    get = PrefixStore.get
    monkeypatch.setattr(PrefixStore, "get", lambda store, key: get(store, key)[:-1] + b"\xff")
    sent = SentFile("x.state", str(path), path.stat().st_size)

    def call(ranks: Any) -> None:
        folder = tmp_path / "received" if ranks.launch.rank else None
        share_file(ranks.store, ranks.connection("files"), sent, folder)

    _, second = both(call)
    assert isinstance(second, CheckpointError) and "arrived damaged" in str(second)


def test_a_temporary_folder_without_room_is_named(monkeypatch):
    usage = SimpleNamespace(free=5e9)
    monkeypatch.setattr(file_transfer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"5\.0 GB free, and 7\.0 GB are sent; set TMPDIR"):
        ReceivedFiles().folder_for([SentFile("x", "x", 7 * 10**9)])
