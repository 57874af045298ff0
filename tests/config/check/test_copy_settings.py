"""Places for second copies that are no second place, and rules that nothing meets, are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.errors import ConfigError
from tests.config.resolving import config_of


def refusal(line: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_fields(config_of(line))
    return str(caught.value)


def test_the_project_folder_is_no_second_place(tmp_path: Path):
    out = tmp_path / "out"
    for name in (out, f"{tmp_path}/x/../out", f"{tmp_path}/b,{out}:keep_last=3"):
        assert "is --proj_dir itself" in refusal(f"--proj_dir {out} --state_copies {name}")
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    assert "itself" in refusal(f"--proj_dir {out} --state_copies {tmp_path / 'link'}")


def test_a_place_is_named_once_and_is_a_folder(tmp_path: Path):
    assert "twice" in refusal(f"--state_copies {tmp_path}/a,{tmp_path}/b/../a")
    (tmp_path / "file").write_text("")
    assert "is a file; expected a folder" in refusal(f"--state_copies {tmp_path / 'file'}")


def test_copies_are_kept_at_multiples_where_states_are_saved():
    line = "--state_copies /a:keep_every={} --epoch_steps 20"
    assert "keep_every=30 is no multiple of --epoch_steps 20" in refusal(line.format(30))
    check_fields(config_of(line.format(40)))
    check_fields(config_of(line.format(30) + " --save_every_steps 15"))


def test_a_limit_of_waiting_needs_something_to_wait_for():
    assert "needs --state_copies" in refusal("--copies_wait_minutes 3")
    check_fields(config_of("--copies_wait_minutes 3 --state_copies /a"))


def test_there_is_one_partner_and_it_is_sent_whole_models():
    assert "there is one partner machine" in refusal("--state_copies partner:/a,partner:/b")
    line = "--state_copies partner:/a --train_type lora --load_model x"
    assert "without its base model, which is not sent" in refusal(line)
    check_fields(config_of("--state_copies partner:/a,/b"))
