"""A partner machine gets every state whole and verified, and neither side waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed import HashStore, PrefixStore, TCPStore

from rwkv_train.checkpoint import state_stream
from rwkv_train.checkpoint.copy_files import CopyAbandonedError
from rwkv_train.checkpoint.resume import StateFile, list_states, load_state, save_state
from rwkv_train.checkpoint.retention import KeepRule
from rwkv_train.checkpoint.state_place import StatePlace
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.training.checkpointing import partner_copies
from rwkv_train.training.checkpointing.partner_copies import PartnerKeeper, PartnerPlace
from tests.checkpoint.fake_lock import Lock
from tests.checkpoint.small_states import save_small_folder, small_state


class Pair:
    """Both sides, over one store."""

    def __init__(self, folder: Path, store: object | None = None, last: int = 1) -> None:
        self.store = HashStore() if store is None else store
        self.folder, self.lock = folder, Lock()
        self.place = PartnerPlace(folder, None, self.store)
        self._rule = KeepRule(last=last)
        self.keeper: PartnerKeeper | None = None

    def keep(self, store: object | None = None) -> None:
        """Starts the partner's side."""
        place = StatePlace(self.folder, self._rule, None, "one", self.lock)
        self.keeper = PartnerKeeper(place, store or self.store)

    def end(self) -> None:
        """Ends both."""
        self.place.release()
        if self.keeper is not None:
            self.keeper.close(60)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setattr(partner_copies, "CHUNK_BYTES", 300)
    monkeypatch.setattr(partner_copies, "_IDLE_SECONDS", 0.01)
    made = Pair(tmp_path / "memory")
    yield made
    made.end()


def saved(tmp_path: Path, step: int, parts: int = 0) -> StateFile:
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    path, state = folder / f"rwkv-step-{step}.state", small_state(step, run="one")
    if parts:
        save_small_folder(path, state, parts)
    else:
        save_state(path, state)
    return next(found for found in list_states(folder) if found.path == path)


def on() -> bool:
    return True


def content(path: Path) -> dict[str, bytes]:
    files = path.iterdir() if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("parts", [0, 3], ids=["file", "folder"])
def test_states_arrive_bit_for_bit_and_older_ones_go(pair: Pair, tmp_path: Path, parts: int):
    pair.keep()
    pair.place.claim()
    for step in (10, 20, 30):
        state = saved(tmp_path, step, parts)
        pair.place.copy(state, [], on)
        assert content(pair.folder / state.path.name) == content(state.path)
        assert pair.place.newest == state
    assert [state.step for state in list_states(pair.folder)] == [30]
    assert load_state(pair.folder / "rwkv-step-30.state")["run"] == "one"
    pair.end()
    # No chunk is left in the store, whose memory is rank zero's.
    assert not pair.lock.owned
    assert not [n for n in range(200) if pair.store.check([f"1/chunk/{n}"])]


def test_it_works_over_the_store_of_a_run_in_full_chunks(tmp_path: Path):
    first = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    second = TCPStore("127.0.0.1", first.port, is_master=False)
    pair = Pair(tmp_path / "memory", PrefixStore("x/partner", first))
    pair.keep(PrefixStore("x/partner", second))
    pair.place.claim()
    state = saved(tmp_path, 10)
    pair.place.copy(state, [], on)
    assert content(pair.folder / state.path.name) == content(state.path)
    pair.end()


def test_bytes_that_change_on_the_way_are_found_before_they_have_a_name(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pair.keep()
    older = saved(tmp_path, 10)
    pair.place.copy(older, [], on)
    fill = state_stream._fill

    def flipped(path: Path, size: int, chunks: Iterator[bytes]) -> None:
        def changed() -> Iterator[bytes]:
            for number, chunk in enumerate(chunks):
                yield bytes(len(chunk)) if number == 2 else chunk

        fill(path, size, changed())

    monkeypatch.setattr(state_stream, "_fill", flipped)
    with pytest.raises(CheckpointError) as caught:
        pair.place.copy(saved(tmp_path, 20), [], on)
    assert "the partner machine: rwkv-step-20.state arrived damaged" in str(caught.value)
    assert [state.step for state in list_states(pair.folder)] == [10]
    assert not [*pair.folder.glob("*.partial")]
    # And the next one is none the worse for it.
    monkeypatch.setattr(state_stream, "_fill", fill)
    pair.place.copy(saved(tmp_path, 30), [], on)
    assert [state.step for state in list_states(pair.folder)] == [30]


@pytest.mark.parametrize("number", [0, 3, 9])
def test_a_copy_that_is_abandoned_on_the_way_leaves_nothing(
    pair: Pair, tmp_path: Path, number: int
):
    pair.keep()
    asked = []

    def counted() -> bool:
        asked.append(1)
        return len(asked) <= number

    with pytest.raises(CopyAbandonedError):
        pair.place.copy(saved(tmp_path, 10), [], counted)
    pair.end()
    assert list_states(pair.folder) == [] and not [*pair.folder.glob("*.partial")]


def test_a_partner_that_has_no_room_or_no_right_says_so(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pair.lock.refusal = ConfigError("another run works there")
    pair.keep()
    for call in (pair.place.claim, lambda: pair.place.copy(saved(tmp_path, 10), [], on)):
        with pytest.raises(CheckpointError) as caught:
            call()
        assert str(caught.value) == "the partner machine: another run works there"
    pair.lock.refusal = None

    def full(place: StatePlace, path: Path, size: int) -> None:
        assert size == (tmp_path / "run" / "rwkv-step-20.state").stat().st_size
        raise CheckpointError("full")

    monkeypatch.setattr(StatePlace, "require_room", full)
    with pytest.raises(CheckpointError, match="the partner machine: full"):
        pair.place.copy(saved(tmp_path, 20), [], on)


def test_a_partner_that_does_not_answer_is_not_waited_for_for_ever(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(partner_copies, "SILENCE_SECONDS", 0.05)
    for call in (pair.place.claim, lambda: pair.place.copy(saved(tmp_path, 10), [], on)):
        with pytest.raises(CheckpointError, match=r"has not answered for 0\.05 s"):
            call()


def test_a_sender_that_goes_silent_leaves_nothing_half(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(partner_copies, "SILENCE_SECONDS", 0.05)
    pair.store.set(
        "1/head",
        '{"name": "rwkv-1.state", "position": 1, "step": 1, "digest": "x", '
        '"run": "one", "sizes": {"": 900}}',
    )
    pair.store.set("1/chunk/0", b"x" * 300)
    pair.keep()
    assert pair.store.get("1/end").decode() == "rank 0 has not sent all of it"
    assert [path.name for path in pair.folder.iterdir()] == ["copies.json"]


def test_names_that_lead_out_of_the_folder_are_refused(pair: Pair, tmp_path: Path):
    pair.store.set(
        "1/head",
        '{"name": "rwkv-1.state", "position": 1, "step": 1, "digest": "x", '
        '"run": "one", "sizes": {"../../x": 1}}',
    )
    pair.keep()
    assert "outside its folder" in pair.store.get("1/end").decode()


def test_a_state_that_is_deleted_meanwhile_is_sent_to_its_end(pair: Pair, tmp_path: Path):
    state = saved(tmp_path, 10)
    whole = content(state.path)
    pair.keep()

    def deletes() -> bool:
        state.path.unlink(missing_ok=True)
        return True

    pair.place.copy(state, [], deletes)
    assert content(pair.folder / state.path.name) == whole and not state.path.exists()


def test_the_partner_leaves_when_it_is_over_and_when_it_is_left(pair: Pair):
    pair.keep()
    pair.place.claim()
    assert pair.keeper is not None
    pair.place.release()
    pair.keeper.close(60)
    assert "partner" not in [thread.name for thread in threading.enumerate()]
    other = Pair(pair.folder)
    other.keep()
    assert other.keeper is not None
    other.keeper.abandon()
    assert "partner" not in [thread.name for thread in threading.enumerate()]
