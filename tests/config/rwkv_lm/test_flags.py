"""Every flag of RWKV-LM has the outcome that flag_table.py has frozen."""

from __future__ import annotations

import pytest

from rwkv_train.config.command_line.fields import fields
from rwkv_train.config.load import load_config
from rwkv_train.config.rwkv_lm.flags import FLAGS, Idle, Refused, Taken, translate
from rwkv_train.errors import ConfigError
from tests.config.rwkv_lm.flag_table import NOTICED, OFF, REFUSED, TABLE


def command_line(flag, value):
    return [f"--{flag}"] if value is None else [f"--{flag}", value]


def leaf(config, name):
    return getattr(getattr(config, fields()[name].section), name)


@pytest.mark.parametrize(("flag", "value"), TABLE, ids=lambda part: repr(part))
def test_each_flag_has_its_frozen_outcome(flag, value):
    outcome = TABLE[flag, value]
    argv = command_line(flag, value)
    if outcome is REFUSED:
        with pytest.raises(ConfigError, match=rf"--{flag}\b") as refusal:
            load_config(translate(argv).argv)
        assert "\n" not in str(refusal.value)
        return
    translation = translate(argv)
    if outcome in (OFF, NOTICED):
        assert translation.argv == []
        assert len(translation.notices) == (outcome is NOTICED)
    else:
        field, expected = outcome
        loaded = leaf(load_config(translation.argv), field)
        assert loaded == expected and type(loaded) is type(expected)


def test_the_frozen_table_misses_no_flag():
    seen = {flag for flag, _ in TABLE}
    assert set(FLAGS) <= seen
    refusals = {flag for (flag, _), outcome in TABLE.items() if outcome is REFUSED}
    assert {flag for flag, row in FLAGS.items() if isinstance(row, Refused)} <= refusals


def test_every_old_name_is_kept_apart_from_the_names_of_our_fields():
    for flag, row in FLAGS.items():
        if isinstance(row, Taken):
            assert row.field in fields()
        else:
            assert flag not in fields(), f"--{flag} is ours and may not be refused"
        if isinstance(row, Idle):
            assert row.notice


def test_other_spellings_are_accepted_with_a_notice():
    for argv in (
        ["--precision", "32"],
        ["--precision", "bf16-mixed"],
        ["--strategy", "ddp_find_unused_parameters_false"],
        ["--accelerator", "cuda"],
    ):
        (notice,) = translate(argv).notices
        assert argv[0] in notice and argv[1] in notice


def test_a_notice_is_given_once_however_often_the_flag_is():
    notices = translate(["--my_ffn_shift", "1", "--my_ffn_shift", "1"]).notices
    assert notices == ["--my_ffn_shift has no effect in RWKV-LM either"]


def stage(number, *more):
    return translate(["--my_pile_stage", number, *more])


def test_stage_2_of_the_older_generations_brings_its_rate_factor():
    old = load_config(stage("2").argv)
    assert (old.train.train_stage, old.optim.special_lr_factor) == (2, 5)
    new = load_config(translate(["--train_stage", "2"]).argv)
    assert (new.train.train_stage, new.optim.special_lr_factor) == (2, None)


def test_stages_0_and_4_of_the_older_generations_sample_at_random():
    sampling = {n: load_config(stage(n).argv).data.sampling for n in "01234"}
    assert sampling == {"0": "random", "1": None, "2": None, "3": None, "4": "random"}
    assert load_config(stage("4", "--sampling", "permutation").argv).data.sampling == "permutation"
    assert load_config(translate(["--train_stage", "4"]).argv).data.sampling is None


def test_the_older_generations_have_no_token_budget_unless_one_is_given():
    assert load_config(stage("3").argv).train.exit_tokens == 0
    assert load_config(stage("3", "--my_exit_tokens", "5000").argv).train.exit_tokens == 5000
    assert load_config(translate(["--train_stage", "3"]).argv).train.exit_tokens is None


def test_stage_0_of_the_older_generations_lasts_500_times_1000_steps():
    train = load_config(stage("0").argv).train
    assert (train.epoch_count, train.epoch_steps) == (500, 1000)
    train = load_config(stage("0", "--epoch_steps", "20", "--epoch_count", "3").argv).train
    assert (train.epoch_count, train.epoch_steps) == (3, 20)
    with_budget = load_config(stage("0", "--my_exit_tokens", "9999").argv).train
    assert with_budget.epoch_count is None


def test_the_data_sets_the_schedule_length_in_the_other_old_stages():
    translation = stage("3", "--epoch_count", "7")
    assert load_config(translation.argv).train.epoch_count is None
    assert any("--epoch_count 7" in notice for notice in translation.notices)
    assert stage("3", "--epoch_count", "999999").notices == []


def test_two_names_of_one_setting_may_agree_but_not_contradict():
    agreed = translate(["--my_pile_stage", "3", "--train_stage", "3"])
    assert load_config(agreed.argv).train.train_stage == 3
    with pytest.raises(ConfigError, match=r"--my_pile_stage and --train_stage"):
        translate(["--my_pile_stage", "2", "--train_stage", "3"])
    with pytest.raises(ConfigError, match=r"--head_size_a and --head_size "):
        translate(["--head_size_a", "64", "--head_size", "32"])


def test_the_last_of_two_equal_flags_wins_as_in_shell_scripts():
    argv = translate(["--micro_bsz", "8", "--micro_bsz", "2"]).argv
    assert load_config(argv).train.micro_bsz == 2


def test_unknown_flags_are_left_for_the_loader():
    assert translate(["--nonsense", "1"]).argv == ["--nonsense=1"]


def test_help_passes_untouched():
    assert translate(["--my_testing", "x060a", "--help"]).argv == [
        "--my_testing",
        "x060a",
        "--help",
    ]


V4NEO = ["--data_type", "utf-8", "--strategy", "ddp_find_unused_parameters_false"]


@pytest.mark.parametrize(
    ("argv", "version"),
    [
        (V4NEO, "4"),
        ([*V4NEO, "--pre_ffn", "0"], "4"),
        (["--data_type", "dummy", "--pre_ffn", "0"], "4"),
        # the checkpoint tells
        ([*V4NEO, "--load_model", "base.pth"], None),
        # these say what they train, or are ours
        ([*V4NEO, "--my_testing", "x070"], "7"),
        ([*V4NEO, "--rwkv_version", "6"], "6"),
        ([*V4NEO, "--config", "a.yaml"], None),
        (["--data_type", "utf-8"], None),
        (["--data_type", "binidx", "--pre_ffn", "0"], None),
    ],
)
def test_the_words_of_v4neo_train_rwkv_4(argv, version):
    translated = translate(argv)
    found = [word.partition("=")[2] for word in translated.argv if "rwkv_version" in word]
    assert found == ([] if version is None else [version])
    assert any("RWKV-4 is trained" in n for n in translated.notices) == (version == "4")


def test_v4neo_counts_mini_epochs_as_at_its_stage_0():
    plain = set(translate(V4NEO).argv)
    staged = set(translate([*V4NEO, "--my_pile_stage", "0", "--my_testing", ""]).argv)
    # a run of an example that is started again resumes, where stage 0 would refuse
    assert staged - plain == {"--train_stage=0"} and plain <= staged
