"""A training state becomes a folder, and a folder one file, with nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_train.checkpoint.convert_state import main
from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.checkpoint.resume import load_state, save_state
from tests.checkpoint.small_states import save_small_folder, small_state


def test_a_state_goes_there_and_back(tmp_path: Path):
    file, folder, back = (tmp_path / f"rwkv-{n}.state" for n in range(3))
    more = {"weights_digest": "abc", "written": {"rwkv-0.pth": {"digest": "d", "tokens": 1}}}
    save_state(file, small_state(7, **more))
    assert main([str(file), str(folder), "--parts", "3"]) == 0
    assert len([*folder.glob("*.distcp")]) == 3
    assert load_state(folder)["weights_digest"] == "abc"
    assert main([str(folder), str(back)]) == 0
    found, expected = load_state(back), load_state(file)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert content_digest(found[key]) == content_digest(value), key


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rwkv-0.state", "rwkv-1.state"], "rwkv-1.state is there already"),
        (["rwkv-0.state", "new.state", "--parts", "0"], "at least one part"),
        (["rwkv-9.state", "new.state"], "rwkv-9.state is not there"),
        (["rwkv-2.state", "new.state"], "no manifest.json"),
    ],
)
def test_what_cannot_be_converted_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words, told
):
    monkeypatch.chdir(tmp_path)
    for number in (0, 1):
        save_small_folder(tmp_path / f"rwkv-{number}.state", small_state(7))
    (tmp_path / "rwkv-2.state").mkdir()
    assert main(words) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "new.state").exists()
