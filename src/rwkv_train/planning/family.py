"""Published models by the names people call them, for `rwkv-plan --model 1.5B`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from rwkv_train.command_line import perhaps
from rwkv_train.config.schema import ModelConfig
from rwkv_train.config.versions import DEFAULT_VERSION
from rwkv_train.errors import ConfigError


class Published(NamedTuple):
    """A model of the family.

    ranks: low ranks where its file has others than the rules of `config.versions` give.
    """

    names: tuple[str, ...]
    n_layer: int
    n_embd: int
    ranks: Mapping[str, int] = MappingProxyType({})


def _ranks_7(decay: int, value: int, gate: int) -> dict[str, int]:
    """Returns the low ranks of a published RWKV-7, whose rate has the rank of the decay."""
    return {"rank_decay": decay, "rank_iclr": decay, "rank_value": value, "rank_gate": gate}


_WIDE_6 = {"rank_mix": 64, "rank_decay": 128}

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "4": (
        Published(("169M", "0.1B"), 12, 768),
        Published(("430M", "0.4B"), 24, 1024),
        Published(("1.5B", "1B5"), 24, 2048),
        Published(("3B",), 32, 2560),
        Published(("7B",), 32, 4096),
        Published(("14B",), 40, 5120),
    ),
    "5": (
        Published(("0.1B",), 12, 768),
        Published(("0.4B",), 24, 1024),
        Published(("1.5B", "1B5"), 24, 2048),
        Published(("3B",), 32, 2560),
        Published(("7B",), 32, 4096),
    ),
    "6": (
        Published(("0.1B",), 12, 768),
        Published(("0.4B",), 24, 1024),
        Published(("1.6B", "1B6", "1.5B"), 24, 2048),
        Published(("3B",), 32, 2560),
        Published(("7B",), 32, 4096, _WIDE_6),
        Published(("14B",), 61, 4096, _WIDE_6),
    ),
    "7": (
        Published(("0.1B",), 12, 768),
        Published(("0.4B",), 24, 1024, _ranks_7(64, 32, 128)),
        Published(("1.5B", "1B5"), 24, 2048, _ranks_7(96, 64, 256)),
        Published(("2.9B", "3B"), 32, 2560, _ranks_7(96, 64, 320)),
        Published(("7.2B", "7B"), 32, 4096, _ranks_7(128, 96, 480)),
        Published(("13.3B", "14B", "13B"), 61, 4096, _ranks_7(128, 96, 480)),
    ),
}
# Rows of the tables that the Pile's and World's tokenizers need, as published models have them.
_PILE, _WORLD = 50277, 65536


def published_sizes(name: str, given: ModelConfig) -> ModelConfig:
    """Returns what was given with the sizes of a published model; `name` without regard to case.

    Raises ConfigError for a name that is none, and for a size that is given besides.
    """
    version = given.rwkv_version or DEFAULT_VERSION
    rows = PUBLISHED.get(version, ())
    found = next((row for row in rows if _plain(name) in map(_plain, row.names)), None)
    known = [row.names[0] for row in rows]
    if found is None:
        advice = perhaps(name.upper(), [each for row in rows for each in row.names])
        raise ConfigError(
            f"--model {name} is no published RWKV-{version}, expected {', '.join(known)}{advice}; "
            "for other sizes give --n_layer and --n_embd"
        )
    sizes = {"n_layer": found.n_layer, "n_embd": found.n_embd, **found.ranks}
    for field in ("n_layer", "n_embd"):
        if getattr(given, field) is not None:
            raise ConfigError(
                f"--model {name} with --{field} {getattr(given, field)}: a published model has "
                "its own sizes; leave one out"
            )
    if given.vocab_size is None:
        sizes["vocab_size"] = usual_vocabulary(version)
    taken = {key: size for key, size in sizes.items() if getattr(given, key) is None}
    return dataclasses.replace(given, rwkv_version=version, **taken)


def usual_vocabulary(version: str) -> int:
    """Returns the rows of embedding and head that published models of a version have."""
    return _PILE if version == "4" else _WORLD


def _plain(name: str) -> str:
    """Returns a name in one spelling: 1B5, 1.5b and 1.5B are one."""
    text = name.strip().casefold().removeprefix("rwkv-")
    split = re.fullmatch(r"(\d+)b(\d+)", text)
    return f"{split[1]}.{split[2]}b" if split else text
