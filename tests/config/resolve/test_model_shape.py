"""Version, sizes and vocabulary from checkpoint, data and flags."""

from __future__ import annotations

import dataclasses

import pytest

from tests.config.resolving import MINIPILE, SHAPE, but, fault, found, resolved, values


def test_sizes_and_version_come_from_the_checkpoint():
    config, lines = resolved("--head_size_divisor 8 --dropout 0.1", found("weights"))
    assert config.model.as_given() == dataclasses.replace(SHAPE, dropout=0.1)
    assert any("RWKV-6" in line and "out/rwkv-init.pth" in line for line in lines)


def test_flags_that_repeat_the_checkpoint_are_accepted():
    line = "--my_testing x060 --n_layer 24 --n_embd 2048 --vocab_size 65536 --head_size 64"
    assert resolved(line, found("weights"))[0].model.as_given() == SHAPE


@pytest.mark.parametrize(
    ("flag", "right"),
    [
        ("--n_layer 12", "n_layer 24"),
        ("--n_embd 768", "n_embd 2048"),
        ("--rwkv_version 7", "rwkv_version 6"),
        ("--dim_ffn 8192", "dim_ffn 7168"),
        ("--vocab_size 50304", "vocab_size 65536"),
        ("--rank_decay 32", "rank_decay 64"),
    ],
)
def test_a_flag_against_the_checkpoint_is_refused_with_the_right_value(flag, right):
    message = fault(flag, found("weights"))
    assert flag in message and right in message and "out/rwkv-init.pth" in message


def test_a_copy_head_of_the_checkpoint_is_kept_without_the_flag():
    shape = dataclasses.replace(SHAPE, rwkv_version="5", head_qk=256, rank_mix=None)
    shape = dataclasses.replace(shape, rank_decay=None)
    discovered = found("weights", model=shape)
    assert values("", "head_qk", discovered=discovered) == 256
    assert "head_qk 256" in fault("--head_qk 128", discovered)


def test_a_fresh_model_is_rwkv_7_with_the_vocabulary_of_the_data():
    assert values("", "rwkv_version", "vocab_size") == ("7", 65536)
    config, _ = resolved("--vocab_size 70000")
    assert config.model.vocab_size == 70000


def test_a_vocabulary_that_the_data_exceeds_is_refused():
    message = fault("--vocab_size 50304")
    assert "50304" in message and "--vocab_size 65536" in message and "world" in message
    discovered = found("weights", vocab_size=70000)
    assert "70000" in fault("", discovered)


def test_an_unknown_vocabulary_is_asked_for():
    discovered = but(MINIPILE, vocab_size=None)
    assert "--vocab_size" in fault("", discovered) and "data/x.manifest.json" in fault(
        "", discovered
    )
    assert values("--vocab_size 50304", "vocab_size", discovered=discovered) == 50304


def test_rwkv_4_ignores_the_head_size_that_all_scripts_give():
    config, lines = resolved('--my_testing "" --head_size_a 64')
    assert config.model.head_size == 0 and config.model.as_given().head_size is None
    assert "head_size 64 is not used" in " ".join(lines)
    assert "--head_size 32" in fault('--my_testing "" --head_size_a 32')


def test_a_copy_head_is_refused_once_the_version_is_known():
    assert "--head_qk 256" in fault("--head_qk 256")
    assert "RWKV-6" in fault("--head_qk 256", found(
        "weights", model=dataclasses.replace(SHAPE, head_qk=256)
    ))  # fmt: skip
