"""States of other formats are refused, never passed over, and nothing deletes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train
from rwkv_train.checkpoint.resume import list_states, load_state, save_state
from rwkv_train.checkpoint.retention import KeepRule, Retention
from rwkv_train.checkpoint.state_format import FORMAT, StateFormatError
from rwkv_train.config.schema import TrainConfig
from rwkv_train.training.start.resume_point import FromState, find_resume_point

OWN = {
    "weights": {"emb.weight": torch.zeros(3, 2)},
    "moments": {"exp_avg": {}},
    "optimizer": "adamw",
    "optimizer_steps": 1,
    "tokens_per_step": 100,
}
# What lies in rwkv-1.state, further than our own state of step 10.
OTHERS = {
    "newer": {"format": FORMAT + 1, "step": 20, "tensors": {"emb": torch.zeros(2)}},
    "newer and without a step": {"format": FORMAT + 1, "place": [1, 2]},
    "newer, of other types": {"format": "4.0", "code_version": "9.9.9"},
    "older": {"format": 2, "step": 20, **OWN},
    "oldest": {"format": 1, "step": 20, "weights": {}, "exp_avg": {}},
    "of no format": {"step": 20, "weights": {}},
    "a list": [1, 2, 3],
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_state_of_another_format_is_refused_and_kept(name: str, tmp_path: Path):
    other = tmp_path / "rwkv-1.state"
    torch.save(OTHERS[name], other)
    retention = Retention(tmp_path, KeepRule(1))
    own = [tmp_path / f"rwkv-step-{step}.state" for step in (10, 11)]
    for path, step in zip(own, (10, 11)):
        retention.add(path, save_state(path, {**OWN, "step": step}), 100 * step, step)
    with pytest.raises(StateFormatError) as caught:
        find_resume_point(TrainConfig(proj_dir=str(tmp_path)))
    message = str(caught.value)
    assert "rwkv-1.state" in message and f"reads format {FORMAT}" in message
    assert "version that wrote it" in message and "\n" not in message
    with pytest.raises(StateFormatError):
        load_state(other)
    # It neither counts among the states to keep nor goes.
    assert retention.apply(own[1]) == [own[0]]
    assert [s.path for s in list_states(tmp_path) if s.other_format] == [other]


def test_the_writer_of_another_format_is_named(tmp_path: Path):
    torch.save({"format": 9, "code_version": "9.9.9"}, tmp_path / "rwkv-1.state")
    with pytest.raises(StateFormatError, match=r"written by 9\.9\.9"):
        load_state(tmp_path / "rwkv-1.state")


def test_a_damaged_number_of_a_format_is_damage_and_passed_over(tmp_path: Path):
    save_state(tmp_path / "rwkv-0.state", {**OWN, "step": 5})
    path = tmp_path / "rwkv-1.state"
    save_state(path, {**OWN, "step": 10})
    # Pickle writes a small whole number as K and one byte.
    written = b"formatq\x01K" + bytes([FORMAT])
    content = path.read_bytes()
    assert written in content, "the pickle of a state begins with its format"
    path.write_bytes(content.replace(written, b"formatq\x01K" + bytes([FORMAT + 1])))
    point = find_resume_point(TrainConfig(proj_dir=str(tmp_path)))
    assert isinstance(point, FromState) and point.path.name == "rwkv-0.state"
    assert "rwkv-1.state is damaged" in point.notes[0]


def test_a_run_leaves_with_status_2_and_writes_nothing(
    flags, run_training, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    folder = tmp_path / "out"
    assert run_training(max_steps=5) == 0
    torch.save(OTHERS["newer"], folder / "rwkv-9.state")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capfd.readouterr()
    assert train.main(flags()) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "rwkv-9.state" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
