"""Compares a resumed run with the run of its state, by the table of `resume_rules`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rwkv_train.config.load import dump_config, saved_values
from rwkv_train.config.mixture_list import shown_data_file
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.config.resume_rules import RULES, Effect, ResumeRule
from rwkv_train.config.schema import RunConfig, listed
from rwkv_train.config.sections import sections_of

# Fields that hold a list, in any order.
_LISTS = ("lora_targets", "lora_train")


class Difference(NamedTuple):
    """A field that this run has otherwise than the run of the state."""

    name: str
    before: object
    now: object
    rule: ResumeRule

    def __str__(self) -> str:
        return f"{self.name} {_shown(self.before)} -> {_shown(self.now)}"


@dataclass(frozen=True)
class Change:
    """A difference and its consequence, for people: the fields that it is about, and their effect.

    label: a few words for a plot.
    """

    names: tuple[str, ...]
    effect: Effect
    text: str
    label: str


def differences(before: Mapping[str, object], config: ResolvedConfig) -> list[Difference]:
    """Returns what this run uses and has otherwise than `before`, in the order of the table.

    before: `known_values`. Fields without effect are no differences.
    """
    now = leaf_values(config)
    return [
        Difference(name, before[name], now[name], rule)
        for name, rule in RULES.items()
        if rule.effect is not Effect.NONE
        and rule.applies(config)
        and _meaning(name, before[name]) != _meaning(name, now[name])
    ]


def known_values(before: Mapping[str, object], config: ResolvedConfig) -> dict[str, object]:
    """Returns leaf name -> value of a state's run: as it was resolved, else the default.

    What an older version did not know, and has no default, is as it is now.
    """
    narrowed = {name for s in sections_of(config) for name in inspect.get_annotations(type(s))}
    defaults = {
        entry.name: getattr(section, entry.name)
        for section in sections_of(RunConfig())
        for entry in dataclasses.fields(section)
        # None would be no value but the question that `resolve` answers.
        if getattr(section, entry.name) is not None or entry.name not in narrowed
    }
    return {**leaf_values(config), **defaults, **before}


def leaf_values(config: ResolvedConfig) -> dict[str, object]:
    """Returns leaf name -> value as a training state holds them."""
    # By way of the text, which is what the other side was read from: 1.0 is not "1.0" there.
    return saved_values(dump_config(config))


def _meaning(name: str, value: object) -> object:
    """Returns a value without what only its spelling has."""
    if name in _LISTS and isinstance(value, str):
        return frozenset(listed(value))
    # Both others read no mask.
    return value == "on" if name == "loss_mask" else value


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(int(value)) if value is not None else "none"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else shown_data_file(str(value))
