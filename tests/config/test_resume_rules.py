"""The table of what a change means to a resumed run: every field, by its resolved value."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rwkv_train.config.command_line.fields import fields
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.resume_differences import differences, known_values, leaf_values
from rwkv_train.config.resume_rules import ACCEPTABLE, RULES, Effect
from rwkv_train.config.schema import RunConfig
from rwkv_train.config.sections import sections_of
from rwkv_train.errors import ConfigError
from tests.config.resolving import config_of, fault, resolved

# A run that uses as many fields as one run can.
LINE = "--val_data_file v --train_type all --optimizer muon --accelerator cpu --strategy ddp "


def compared(line: str, now: str = "") -> dict[str, Effect]:
    """Returns name -> effect of what a run with `now` has otherwise than one with `line`."""
    before = leaf_values(resolved(line)[0])
    config, _ = resolved(now)
    return {d.name: d.rule.effect for d in differences(known_values(before, config), config)}


def changed(config: ResolvedConfig, name: str) -> dict[str, Any]:
    """Returns the leaf values of `config` with another value of one field."""
    values = leaf_values(config)
    entry, value = fields()[name], values[name]
    if entry.choices:
        other = next(choice for choice in entry.choices if choice != value)
    elif entry.kind is bool:
        other = not value
    elif entry.kind is str:
        other = f"{value}x"
    else:
        other = (value or 0) + 1
    return {**values, name: other}


def test_every_field_has_a_row_and_every_row_a_field():
    names = [e.name for section in sections_of(RunConfig()) for e in dataclasses.fields(section)]
    missing = [
        f'    "{name}": ResumeRule(Effect...., "what follows"),'
        for name in names
        if name not in RULES
    ]
    assert not missing, "write rows into config/resume_rules.py:\n" + "\n".join(missing)
    assert set(RULES) == set(names), "rows of fields that are no more"


@pytest.mark.parametrize("name", RULES)
def test_a_change_of_every_field_is_seen_as_its_row_says(name: str):
    rule = RULES[name]
    lines = [LINE, "--data_type numpy", "--strategy deepspeed_stage_2 --devices 2"]
    lines += ["--exit_tokens 0 --epoch_count 5"]
    configs = [resolved(line + " --accelerator cpu")[0] for line in lines]
    if name.startswith("lora"):
        # Resolving adapters needs a trained model to begin with.
        lora = dataclasses.replace(configs[0].train, train_type="lora")
        configs = [dataclasses.replace(configs[0], train=lora)]
    config = next(config for config in configs if rule.applies(config))
    found = differences(known_values(changed(config, name), config), config)
    expected = [] if rule.effect is Effect.NONE else [name]
    assert [difference.name for difference in found] == expected
    assert all(rule.says or name in str(found[0]) for rule in [RULES[name]] if found)


def test_a_default_that_is_written_out_is_no_change():
    assert compared("", "") == {}
    out = "--sampling permutation --magic_prime 2926181 --exit_tokens 1498226207 --random_seed 0"
    out += " --warmup_steps -1 --epoch_steps 5040 --beta1 0.9 --beta2 .99 --adam_eps 1.0e-18"
    out += " --n_layer 6 --dim_att 512 --val_split None --num_workers 7 --proj_dir elsewhere"
    assert compared("", out) == {}
    assert compared("", "--beta2 0.98") == {"beta2": Effect.COURSE}


def test_what_a_run_does_not_use_is_no_change():
    assert compared("", "--tokenizer world --random_seed 3") == {}
    assert compared("", "--ds_bucket_mb 3") == {}
    random = "--sampling random "
    assert compared(random, random + "--random_seed 3") == {"random_seed": Effect.REFUSED}


def test_fields_that_an_older_version_did_not_know_had_their_default():
    before = leaf_values(resolved("")[0])
    # spike_sigma has a default, adam_eps is worked out
    for name in ("spike_sigma", "adam_eps"):
        del before[name]
    config, _ = resolved("--spike_sigma 6 --adam_eps 1e-9")
    found = differences(known_values(before, config), config)
    assert [(d.name, d.before, d.now) for d in found] == [("spike_sigma", 0.0, 6.0)]


def test_no_more_than_what_is_refused_can_be_accepted():
    assert {"data_file", "ctx_len", "head_size_divisor", "run"} <= set(ACCEPTABLE)
    assert not {"lr_init", "n_layer", "proj_dir"} & set(ACCEPTABLE)
    config_of("--accept_changes ctx_len,data_file")
    for name, why in [
        ("lr_init", "need not be accepted"),
        ("n_layer", "never can"),
        ("ctxlen", "no setting"),
    ]:
        message = fault(f"--accept_changes {name}")
        assert f"--accept_changes {name}" in message and why in message and "ctx_len" in message
    with pytest.raises(ConfigError):
        resolved("--accept_changes ctx_len,lr_init")
