"""A ~ in a path is the home folder, wherever the path is given; never a folder of that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from rwkv_train.config.command_line.fields import fields
from rwkv_train.config.load import PATHS, load_config, read_config
from rwkv_train.config.mixture_list import mixture_components
from rwkv_train.data.make_data_flags import parse, parse_tool
from rwkv_train.errors import ConfigError
from rwkv_train.files import expand_home
from rwkv_train.inference.__main__ import generate_parser

NO_PATHS = {"accept_changes", "eval_tasks", "lora_targets", "lora_train", "run_name", "wandb"}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_every_text_among_the_fields_is_a_path_or_known_to_be_none():
    texts = {name for name, field in fields().items() if field.kind is str and not field.choices}
    assert texts == PATHS | NO_PATHS


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize("way", ["word", "equals", "yaml"])
def test_it_is_written_out_in_every_field_that_is_a_path(name, way, home, tmp_path):
    section = fields()[name].section
    if way == "yaml":
        (tmp_path / "run.yaml").write_text(f"{section}: {{{name}: ~/a b/c~}}")
        config = load_config(["--config", "~/run.yaml"])
        assert read_config(tmp_path / "run.yaml") == config
    else:
        config = load_config(
            [f"--{name}=~/a b/c~"] if way == "equals" else [f"--{name}", "~/a b/c~"]
        )
    assert getattr(getattr(config, section), name) == f"{home}/a b/c~"


def test_it_is_written_out_in_every_item_of_a_mixture(home):
    config = load_config(["--data_file", "~/a:0.5, ~/b:1..2,c:1"])
    assert config.data.data_file == f"{home}/a:0.5,{home}/b:1..2,c:1"
    assert [part.path for part in mixture_components(config.data.data_file)][1] == f"{home}/b"


def test_environment_variables_and_other_tildes_stay(home):
    for path in ("$HOME/a", "a/~/b", "a~", "./~", "${HOME}"):
        assert expand_home(path) == path
    assert expand_home("~") == str(home)
    assert expand_home("~/folder/") == f"{home}/folder/"


def test_a_user_s_home_folder_is_found_and_an_unknown_one_refused(tmp_path, monkeypatch):
    assert expand_home("~root/x") == str(Path("~root").expanduser() / "x")
    with pytest.raises(ConfigError, match=r"--proj_dir ~nobody-here/x: the home folder ~nobody"):
        load_config(["--proj_dir", "~nobody-here/x"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~notes-here").write_text("")
    assert expand_home("~notes-here") == "~notes-here"


def test_the_other_programs_do_the_same(home, capsys):
    line = "~/in.jsonl ~/b.jsonl 1 8 -o ~/out --tokenizer ~/t.json --chat_template=~/c.yaml"
    given = parse([*line.split(), "--report=~/r.png"])
    assert given.inputs == [f"{home}/in.jsonl", f"{home}/b.jsonl"]
    assert (given.output, given.tokenizer) == (f"{home}/out", f"{home}/t.json")
    assert (given.chat_template, given.report) == (f"{home}/c.yaml", home / "r.png")
    tool = parse_tool(["--merge", "~/a", "~/b", "-o", "~/c"])
    assert (tool.merge, tool.output) == ([f"{home}/a", f"{home}/b"], f"{home}/c")
    assert parse_tool(["--inspect", "~/a"]).inspect == f"{home}/a"
    asked = generate_parser().parse_args(["--load_model=~/m.pth", "--tokenizer=~/t", "~ hi"])
    assert (asked.load_model, asked.tokenizer) == (f"{home}/m.pth", f"{home}/t")
    assert asked.prompt == "~ hi"
    with pytest.raises(SystemExit) as caught:
        parse(["a.jsonl", "1", "8", "-o", "~nobody-here/x"])
    assert caught.value.code == 2
    assert "~nobody-here is not known" in capsys.readouterr().err
