"""Training states: verified to the bit, ordered by their place in the data, pruned by rule."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint import space
from rwkv_train.checkpoint.digest import content_digest, file_digest
from rwkv_train.checkpoint.resume import list_states, load_state, save_state
from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.errors import CheckpointError
from tests.checkpoint.small_states import small_state as state


def test_a_state_comes_back_as_it_was(tmp_path: Path):
    path = tmp_path / "rwkv-1.state"
    save_state(path, state(7))
    found = load_state(path)
    assert content_digest({k: v for k, v in found.items() if k != "format"}) == content_digest(
        state(7)
    )
    assert not list(tmp_path.glob("*.partial"))


CHANGES: dict[str, Callable[[dict], object]] = {
    "a bit of a tensor": lambda s: s["weights"]["a"].view(torch.int32)[0, 0].add_(1),
    "the sign of a zero": lambda s: s["moments"]["exp_avg"]["a"].view(torch.int32)[0, 0].neg_(),
    "a shape": lambda s: s["weights"].update(a=s["weights"]["a"].reshape(3, 2)),
    "a dtype": lambda s: s["weights"].update(b=s["weights"]["b"].double()),
    "a name": lambda s: s["weights"].update(c=s["weights"].pop("a")),
    "the order": lambda s: s["weights"].update(a=s["weights"].pop("a")),
    "a number": lambda s: s.update(epoch_loss_sum=0.3),
    "a type": lambda s: s.update(step=7.0),
    "a text": lambda s: s.update(config="train:\n  x: 2\n"),
    "one value more": lambda s: s.update(more=None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_digest_sees_every_change(name: str):
    one, other = state(7), state(7)
    assert content_digest(one) == content_digest(other)
    CHANGES[name](other)
    assert content_digest(one) != content_digest(other)


def test_a_state_with_any_byte_changed_is_refused_or_the_same(tmp_path: Path):
    whole = tmp_path / "rwkv-1.state"
    save_state(whole, state(7))
    expected, content = content_digest(load_state(whole)), whole.read_bytes()
    damaged = tmp_path / "rwkv-2.state"
    refused = 0
    for position in range(0, len(content), 61):
        damaged.write_bytes(
            content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]
        )
        try:
            # Padding and the archive's own dates mean nothing.
            assert content_digest(load_state(damaged)) == expected, position
        except CheckpointError as error:
            assert str(damaged) in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_state_cut_off_is_refused(tmp_path: Path, share: float):
    path = tmp_path / "rwkv-1.state"
    save_state(path, state(7))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path)
    (found,) = list_states(tmp_path)
    assert found.position is None and str(path) in found.fault


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    path = tmp_path / "rwkv-1.state"
    bad = state(7)
    bad["weights"]["a"][1, 1] = torch.nan
    save_state(path, bad)
    with pytest.raises(CheckpointError, match="a is not finite"):
        load_state(path)


def test_states_of_another_format_are_refused(tmp_path: Path):
    path = tmp_path / "rwkv-1.state"
    torch.save({"format": 2, **state(7)}, path)
    with pytest.raises(CheckpointError, match="format 2, this version reads format 3"):
        load_state(path)


def test_states_are_ordered_by_their_place_in_the_data(tmp_path: Path):
    steps = {
        "rwkv-0.state": 20,
        "rwkv-1.state": 40,
        "rwkv-step-33.state": 33,
        "rwkv-step-40.state": 40,
        "rwkv-final.state": 30,
    }
    for name, step in steps.items():
        save_state(tmp_path / name, state(step))
    # after a change of the batch: step 5 of 100 tokens is further than step 40 of 10
    save_state(tmp_path / "rwkv-step-5.state", state(5, tokens_per_step=100))
    (tmp_path / "rwkv-7.state").write_bytes(b"no zip")
    (tmp_path / "rwkv-1.pth").write_bytes(b"")
    (tmp_path / "rwkv-step-9.state.77.partial").write_bytes(b"")
    assert [file.path.name for file in list_states(tmp_path)] == [
        "rwkv-step-5.state",
        "rwkv-1.state",
        "rwkv-step-40.state",
        "rwkv-step-33.state",
        "rwkv-final.state",
        "rwkv-0.state",
        "rwkv-7.state",
    ]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_full_disk_is_noticed_before_a_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage(1, 1, 70_000))
    monkeypatch.setattr(torch, "save", lambda *_: pytest.fail("it was begun"))
    big = {"a": torch.zeros(2000)}
    for write in (
        lambda: save_state(tmp_path / "rwkv-1.state", state(1, more=big)),
        lambda: save_weights(tmp_path / "rwkv-1.pth", big, torch.float32),
    ):
        with pytest.raises(CheckpointError, match=r"needs 0\.1 MB and 0\.1 MB are free"):
            write()
    assert not names(tmp_path)


def test_an_old_state_survives_a_failed_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rwkv-1.state"
    save_state(path, state(7))
    before = path.read_bytes()

    def torn(content: object, file: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(CheckpointError, match="No space left"):
        save_state(path, state(8))
    assert path.read_bytes() == before and names(tmp_path) == {"rwkv-1.state"}


def test_a_file_has_the_digest_that_sha256sum_prints(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    shutil.copy(path, tmp_path / "copy")
    assert file_digest(tmp_path / "copy") == file_digest(path)
