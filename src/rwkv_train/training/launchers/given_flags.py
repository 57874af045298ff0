"""The arguments that launchers add, and those that matter although others are wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from rwkv_train.errors import ConfigError

_LOCAL_RANK = ("--local_rank", "--local-rank")


def without_local_rank(argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Returns the arguments without --local_rank, which DeepSpeed's launcher adds.

    Raises ConfigError when it says something else than LOCAL_RANK.
    """
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _LOCAL_RANK:
            kept.append(word)
            continue
        value = value if equals else next(words, "")
        if value != environment.get("LOCAL_RANK"):
            raise ConfigError(
                f"{name} {value}: only launchers give it, with the variable LOCAL_RANK beside it, "
                f"which is {environment.get('LOCAL_RANK', 'not set')}; leave it out"
            )
    return kept


def given_number(argv: Sequence[str], name: str) -> int | None:
    """Returns the number behind a flag of that name, None where there is none."""
    words = [word for given in argv for word in given.split("=", 1)]
    for flag, value in pairwise(words):
        if flag.replace("-", "_") == f"__{name}" and value.isdecimal() and int(value) > 0:
            return int(value)
    return None
