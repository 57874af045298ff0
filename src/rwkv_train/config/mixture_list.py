"""Several data sets with weights in one --data_file: `a:0.7,b:0.3`, or `a:0.7..0.3,b:0.3..0.7`."""

from __future__ import annotations

import os
import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

from rwkv_train.errors import ConfigError, first_few
from rwkv_train.files import expand_home

# Parts of a list that a message names.
_SHOWN_PARTS = 6
# Of the files by which a data set is known.
_ENDINGS = (".idx", ".manifest.json")
_NUMBER = r"\d+(?:\.\d+)?"
# Greedy up to the last colon, as a path may hold colons; and line breaks, hence DOTALL.
_WEIGHTED = re.compile(rf"(.+):({_NUMBER})(?:\.\.({_NUMBER}))?", re.DOTALL)


class MixtureComponent(NamedTuple):
    """One data set of a mixture and its shares of the samples at begin and end of the run."""

    path: str
    begin: Fraction
    end: Fraction


def mixture_components(data_file: str | None) -> tuple[MixtureComponent, ...]:
    """Returns the components of a mixture, () when data_file names a single data set.

    A list is one as soon as an item ends with a colon and a number; then all items must. A name
    that looks like a list is a single data set where there are files of that name. Raises
    ConfigError for items without a weight, named twice, and for weights that cannot be used.
    """
    if data_file is None or _is_data_set(data_file):
        return ()
    items, shown = data_file.split(","), shown_data_file(data_file)
    found = [_WEIGHTED.fullmatch(item.strip()) for item in items]
    # Without a single weight it is one path, which may hold commas.
    if not any(found):
        return ()
    matches = []
    for item, match in zip(items, found):
        _require_prefix(shown, item.strip(), match)
        if match is None:
            raise ConfigError(
                f"--data_file {shown}: {item.strip()!r} has no weight; write every part as "
                "PREFIX:NUMBER, or PREFIX:BEGIN..END for a weight that changes over the run"
            )
        matches.append(match)
    paths = [match[1] for match in matches]
    repeated = [path for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise ConfigError(
            f"--data_file {shown}: {repeated[0]} is named twice; name it once, with the sum of"
            " its weights"
        )
    begin = _shares(shown, [match[2] for match in matches])
    end = _shares(shown, [match[3] or match[2] for match in matches])
    return tuple(map(MixtureComponent, paths, begin, end))


def expand_homes(data_file: str) -> str:
    """Returns data_file with the home folders of its items written out (`expand_home`)."""
    if not any(_WEIGHTED.fullmatch(item.strip()) for item in data_file.split(",")):
        return expand_home(data_file)
    return ",".join(expand_home(item.strip()) for item in data_file.split(","))


def weights_change(components: tuple[MixtureComponent, ...]) -> bool:
    """Tells whether a share at the end is another than at the beginning."""
    return any(component.begin != component.end for component in components)


def shown_data_file(data_file: str | None) -> str:
    """Returns data_file as a message can hold it: of a long list of parts the first few."""
    items = str(data_file).split(",")
    if len(items) <= _SHOWN_PARTS or not any(map(_WEIGHTED.fullmatch, map(str.strip, items))):
        return str(data_file)
    return first_few(items, _SHOWN_PARTS, ",")


def _is_data_set(name: str) -> bool:
    # Path.is_file raises where a name is too long, as the list of many parts is.
    return any(os.path.isfile(f"{name}{ending}") for ending in _ENDINGS)  # noqa: PTH113


def _require_prefix(shown: str, item: str, match: re.Match[str] | None) -> None:
    """Raises ConfigError for a data set whose own name ends like a weight, and that has none."""
    if match is not None and _is_data_set(item) and not _is_data_set(match[1]):
        raise ConfigError(
            f"--data_file {shown}: {item} is the name of a data set, and in a list it needs a "
            f"weight behind it: {item}:1"
        )


def _shares(shown: str, weights: list[str]) -> list[Fraction]:
    """Returns the weights divided by their sum, exactly."""
    # From the decimal text: 0.1 as a float has the denominator 2^55, and the period with it.
    numbers = [Fraction(weight) for weight in weights]
    total = sum(numbers)
    if total == 0:
        raise ConfigError(f"--data_file {shown}: all weights are 0; one must be above")
    return [number / total for number in numbers]
