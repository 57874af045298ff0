"""Defaults, YAML file and command line."""

from __future__ import annotations

import dataclasses
import string
from typing import get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_train.config.choices import Strategy
from rwkv_train.config.command_line.argv import read_arguments, write_arguments
from rwkv_train.config.command_line.fields import fields, sections
from rwkv_train.config.load import dump_config, load_config, read_config
from rwkv_train.config.schema import RunConfig
from rwkv_train.errors import ConfigError


def fault(argv):
    with pytest.raises(ConfigError) as caught:
        load_config(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(tmp_path, text, name="run.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_no_flags_give_the_defaults():
    assert load_config([]) == RunConfig()


def test_flags_are_understood_in_every_spelling():
    for argv in (["--n_layer", "12"], ["--n_layer=12"], ["--n-layer", "12"], ["--n-layer=12"]):
        assert load_config(argv).model.n_layer == 12
    assert load_config(["--lr_init=-1"]).optim.lr_init == -1.0
    assert load_config(["--exit_tokens", "-5"]).train.exit_tokens == -5
    assert load_config(["--proj_dir", "a=b --c"]).train.proj_dir == "a=b --c"
    assert load_config(["--n_layer", "None"]).model.n_layer is None


@pytest.mark.parametrize("word", ["1", "True", "true", "yes", "on", "YES"])
def test_true_may_be_said_in_many_ways(word):
    assert load_config(["--grad_cp", word]).train.grad_cp is True


@pytest.mark.parametrize("word", ["0", "False", "false", "no", "off", "NO"])
def test_false_may_be_said_in_many_ways(word):
    assert load_config(["--plot", word]).log.plot is False


def test_a_bare_switch_is_on_wherever_it_stands():
    config = load_config(["--grad_cp", "--n_layer", "3", "--load_partial"])
    assert config.train.grad_cp and config.train.load_partial and config.model.n_layer == 3


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = written(tmp_path, "model: {n_layer: 3, n_embd: 96}\ntrain: {micro_bsz: 2}\n")
    config = load_config(["--n_layer", "5", "--config", str(path)])
    assert (config.model.n_layer, config.model.n_embd) == (5, 96)
    assert (config.train.micro_bsz, config.data.ctx_len) == (2, 1024)


def test_a_flag_can_take_back_what_the_file_says(tmp_path):
    path = written(tmp_path, "log: {wandb: Test}\ntrain: {grad_cp: true}\n")
    config = load_config([f"--config={path}", "--wandb", "None", "--grad_cp", "0"])
    assert config.log.wandb is None and config.train.grad_cp is False


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    path = written(tmp_path, "optim: {lr_init: 6e-4, lr_final: 0, adam_eps: 1e-18}\n")
    optim = read_config(path).optim
    assert (optim.lr_init, optim.lr_final, optim.adam_eps) == (6e-4, 0.0, 1e-18)
    assert type(optim.lr_final) is float


def test_a_version_may_be_written_as_a_number(tmp_path):
    assert read_config(written(tmp_path, "model: {rwkv_version: 6}\n")).model.rwkv_version == "6"


def test_empty_files_and_sections_change_nothing(tmp_path):
    assert read_config(written(tmp_path, "")) == RunConfig()
    assert read_config(written(tmp_path, "model:\ntrain: {}\n")) == RunConfig()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--n_layr", "5"], ["--n_layr", "perhaps you meant --n_layer"]),
        (["--my_pile_stag", "3"], ["perhaps you meant --my_pile_stage"]),
        (["--qqqq", "3"], ["unknown flag --qqqq"]),
        (["--n_layer", "x"], ["--n_layer", "a whole number", "'x'"]),
        (["--n_layer", "1.5"], ["--n_layer", "a whole number", "'1.5'"]),
        (["--n_layer="], ["--n_layer", "a whole number", "''"]),
        (["--n_layer"], ["--n_layer needs a value", "a whole number"]),
        (["--n_layer", "--n_embd", "32"], ["--n_layer needs a value"]),
        (["--lr_init", "fast"], ["--lr_init", "a number", "'fast'"]),
        (["--ctx_len", "None"], ["--ctx_len", "a whole number", "'None'"]),
        (["--sampling", "both"], ["--sampling", "permutation, random", "'both'"]),
        (["--plot", "maybe"], ["--plot", "True/False", "'maybe'"]),
        (["--n_embd", "32", "--n_layer", "x"], ["--n_layer", "'x'"]),
        (["out"], ["'out' belongs to no flag"]),
        (["--n_layer", "3", "4"], ["'4' belongs to no flag"]),
        (["-n", "3"], ["'-n' belongs to no flag"]),
        (["--config"], ["--config needs a value"]),
        (["--config", "a", "--config", "b"], ["--config is given twice"]),
        (["--config", "missing.yaml"], ["missing.yaml", "No such file"]),
    ],
)
def test_a_wrong_flag_is_named_with_what_was_expected(argv, words):
    message = fault(argv)
    assert all(word in message for word in words), message


BOMB = "".join(f"    - &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(2, 12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {n_layr: 3}", ["model.n_layr", "perhaps you meant n_layer"]),
        ("model: {ctx_len: 3}", ["model.ctx_len", "belongs into the section data"]),
        ("n_layer: 3", ["n_layer", "belongs into the section model"]),
        ("modell: {n_layer: 3}", ["unknown section 'modell'", "perhaps you meant model"]),
        ("train: {my_pile_stage: 3}", ["train.my_pile_stage", "a flag of RWKV-LM"]),
        ("model: {n_layer: three}", ["model.n_layer", "a whole number", "'three'"]),
        ("model: {n_layer: 3.5}", ["model.n_layer", "a whole number", "3.5"]),
        ("model: {n_layer: true}", ["model.n_layer", "a whole number", "True"]),
        ("model: {n_layer: [3]}", ["model.n_layer", "a whole number", "[3]"]),
        ("data: {ctx_len: null}", ["data.ctx_len", "a whole number", "None"]),
        ("data: {data_file: 7}", ["data.data_file", "a text", "7"]),
        ("log: {wandb: no}", ["log.wandb", "a text", "False"]),
        ("optim: {lr_init: true}", ["optim.lr_init", "a number", "True"]),
        ("train: {grad_cp: 2}", ["train.grad_cp", "0/1", "2"]),
        ("train: {grad_cp: 0.0}", ["train.grad_cp", "0/1", "0.0"]),
        ("train: {train_stage: 7}", ["train.train_stage", "one of 0, 1, 2, 3, 4", "7"]),
        ("model: 3", ["model", "expected `field: value`"]),
        ("- model", ["expected the sections model, data"]),
        ("model: {n_layer: 3, n_layer: 4}", ["'n_layer' is given twice"]),
        ("model: {n_layer: 3}\nmodel: {n_embd: 32}", ["'model' is given twice"]),
        ("model: {n_layer: 3", ["is not YAML", "line 1"]),
        ("model: {? [1] : 2}", ["is not YAML"]),
        ("!!python/object:os.system {}", ["is not YAML"]),
        ("[" * 100_000, ["nested too deeply"]),
        ("- " * 5000 + "x", ["nested too deeply"]),
        ("model: {n_layer: 2001-13-45}", ["is not YAML", "month"]),
        ("model: {n_layer: !!int x}", ["is not YAML", "'x'"]),
        ("model: {n_layer: " + "9" * 5000 + "}", ["is not YAML", "digits"]),
        # Ten billion words if it were written out.
        ("model:\n  n_layer:\n    - &a1 [w, w]\n" + BOMB, ["model.n_layer", "a whole number"]),
    ],
)
def test_a_wrong_file_is_named_with_the_place_in_it(tmp_path, text, words):
    path = written(tmp_path, text)
    message = fault(["--config", str(path)])
    assert str(path) in message
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 1000


def test_a_folder_and_bytes_are_no_configuration(tmp_path):
    assert str(tmp_path) in fault(["--config", str(tmp_path)])
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not YAML" in fault(["--config", str(path)])


def test_a_dumped_configuration_is_grouped_and_commented():
    text = dump_config(RunConfig())
    assert list(yaml.safe_load(text)) == list(sections())
    assert text.startswith("# Shape and architecture of the network.\nmodel:\n  rwkv_version: null")


def values_of(entry):
    """Any value the schema allows in a field, sensible or not."""
    if entry.choices:
        values = st.sampled_from(entry.choices)
    else:
        values = {
            int: st.integers(-(10**13), 10**13),
            float: st.floats(allow_nan=False, allow_infinity=False),
            str: st.text(max_size=20),
            bool: st.booleans(),
        }[entry.kind]
    return st.none() | values if entry.optional else values


@st.composite
def configurations(draw):
    parts = {}
    for section, section_type in sections().items():
        mine = [entry for entry in fields().values() if entry.section == section]
        parts[section] = section_type(**{entry.name: draw(values_of(entry)) for entry in mine})
    return RunConfig(**parts)


@pytest.mark.parametrize(
    "name", ["训练/数据", "a\x85b", "a\u2028b", "two\nlines", "1e3", "null", " x"]
)
def test_unusual_names_survive_a_file(tmp_path, name):
    config = load_config([f"--proj_dir={name}", f"--wandb={name}"])
    assert config.train.proj_dir == config.log.wandb == name
    assert read_config(written(tmp_path, dump_config(config))) == config
    assert ("训练" in dump_config(config)) == ("训练" in name)


@pytest.mark.parametrize("name", ["~", "~0", "./~", "././~x", "./x", "~/x"])
def test_a_folder_whose_name_begins_with_a_tilde_survives_a_file(tmp_path, name):
    config = RunConfig()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, proj_dir=name))
    assert read_config(written(tmp_path, dump_config(config))) == config


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(config=configurations())
def test_a_dumped_configuration_loads_as_itself(tmp_path, config):
    path = written(tmp_path, dump_config(config))
    assert read_config(path) == config


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(config=configurations())
def test_a_file_and_no_flags_pass_through_the_command_line_unchanged(tmp_path, config):
    path = written(tmp_path, dump_config(config))
    assert load_config([f"--config={path}"]) == config


@given(
    st.lists(
        st.tuples(
            st.text(string.ascii_lowercase + "_", min_size=1, max_size=8),
            st.none() | st.text(max_size=8),
        )
    )
)
def test_arguments_survive_being_written_and_read(arguments):
    assert read_arguments(write_arguments(arguments)) == arguments


def test_no_leaf_name_stands_in_two_sections():
    leaves = [f.name for s in sections().values() for f in dataclasses.fields(s)]
    assert sorted(leaves) == sorted(fields())


def test_every_choice_of_a_field_is_accepted_on_the_command_line():
    for entry in fields().values():
        for choice in entry.choices:
            config = load_config([f"--{entry.name}", str(choice)])
            assert getattr(getattr(config, entry.section), entry.name) == choice
    assert "deepspeed_stage_3_offload" in get_args(Strategy)


@pytest.mark.parametrize("written", ["on", "off", "'on'", "auto"])
def test_on_and_off_in_a_file_are_what_they_look_like(written, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"data:\n  loss_mask: {written}\n", encoding="utf-8")
    assert load_config([f"--config={path}"]).data.loss_mask == written.strip("'")
