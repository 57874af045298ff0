"""Limits of numbers: what they refuse, in which words, and that fields bring them along."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from rwkv_train.config.check.field_limits import check_limits
from rwkv_train.config.check.field_rules import check_fields
from rwkv_train.config.limits import Above, AtLeast, Limit, MultipleOf, Share
from rwkv_train.config.load import load_config
from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.schema import ModelConfig, OptimConfig
from rwkv_train.errors import ConfigError


@pytest.mark.parametrize(
    ("limit", "good", "bad", "fault"),
    [
        (AtLeast(1), (1, 7), (0, -3), ": must be at least 1"),
        (Above(0), (1e-9, 2), (0, -1), ": must be above 0"),
        (Share(), (0, 0.5), (1, 1.5, -0.1), ": must be at least 0 and below 1"),
        (MultipleOf(32), (0, 32, 96), (40,), " is not a multiple of 32; use 32"),
        (MultipleOf(32), (), (1,), " is not a multiple of 32; use 32"),
        (MultipleOf(32), (), (100,), " is not a multiple of 32; use 96"),
    ],
    ids=str,
)
def test_a_limit_names_what_it_refuses(limit: Limit, good, bad, fault: str):
    assert [limit.fault(value) for value in good] == [None] * len(good)
    assert [limit.fault(value) for value in bad] == [fault] * len(bad)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (ModelConfig(n_embd=40), "--n_embd 40 is not a multiple of 32; use 32"),
        (ModelConfig(n_embd=0), "--n_embd 0: must be at least 1"),
        (OptimConfig(beta1=1.0), "--beta1 1.0: must be at least 0 and below 1"),
        (OptimConfig(warmup_steps=-2), "--warmup_steps -2: must be at least -1"),
        (OptimConfig(lr_init=float("inf")), "--lr_init inf is not a finite number"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_field_brings_its_limits_along(section, message: str):
    with pytest.raises(ConfigError) as caught:
        check_limits(section)
    assert str(caught.value) == message


def test_what_is_not_given_has_no_limits():
    check_limits(ModelConfig())
    check_limits(OptimConfig())


@pytest.mark.parametrize("version", [None, "4", "5", "6", "7"])
@pytest.mark.parametrize("width", [5, 40, 96, 100, 200, 777])
@pytest.mark.parametrize("head_size", [None, 32, 48, 64])
def test_every_width_that_a_refusal_offers_is_taken(version, width: int, head_size):
    asked = ModelConfig(rwkv_version=version, n_embd=width, head_size=head_size, vocab_size=9)
    if version == "4":
        asked = replace(asked, head_size=None)
    try:
        complete_model(asked)
    except ConfigError as error:
        offers = _offers(str(error))
        assert offers, str(error)
        for offer in offers:
            complete_model(replace(asked, **offer))


def test_a_width_is_refused_with_the_same_words_before_anything_is_read():
    with pytest.raises(ConfigError) as caught:
        check_fields(load_config(["--data_file", "x", "--n_embd", "100"]))
    assert _offers(str(caught.value)) == [{"n_embd": 96, "head_size": 32}, {"n_embd": 128}]


def _offers(message: str) -> list[dict[str, int]]:
    """The changes that a refusal of --n_embd offers, `or` between them."""
    advice = message.partition("; use ")[2]
    offers = []
    for words in re.split(r",? or ", advice):
        found = re.fullmatch(
            r"(?:(?:--n_embd )?(\d+))?(?: ?with heads of \d+)?(?:(?: with )?--head_size (\d+))?",
            words,
        )
        assert found, words
        pairs = zip(("n_embd", "head_size"), found.groups())
        offers.append({name: int(number) for name, number in pairs if number})
    return offers
