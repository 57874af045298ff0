"""Amounts as people write and read them: 24GB, 300e9, 1.5B."""

from __future__ import annotations

import re

from rwkv_train.errors import ConfigError

# As on the box of a card, whose GB are of 2^30 bytes.
_BYTES = {"": 1, "b": 1, "m": 2**20, "mb": 2**20, "mib": 2**20, "g": 2**30, "gb": 2**30} | {
    "gib": 2**30,
    "t": 2**40,
    "tb": 2**40,
    "tib": 2**40,
}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
# Beyond it sums of sums are no numbers any more.
_MOST = 1e30
_AMOUNT = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)")


def bytes_written(flag: str, text: str) -> int:
    """Returns the bytes of 24GB or 24GiB, which are one as on the boxes of cards.

    Raises ConfigError naming the flag.
    """
    size = _read(text, _BYTES)
    # A bare number that is small was meant as GB.
    if size is None or not 2**20 <= size < _MOST:
        raise ConfigError(f"--{flag} {text}: expected a size with its unit, such as 24GB")
    return int(size)


def count_written(flag: str, text: str, example: str = "300e9 or 300B") -> float:
    """Returns the number of 300e9 or 300B; raises ConfigError unless it is above 0.

    flag: that the error names.  example: of what is expected there.
    """
    count = _read(text, _COUNTS)
    if count is None or not 0 < count < _MOST:
        limit = "above 0" if count is None or count <= 0 else f"below {_MOST:g}"
        raise ConfigError(f"--{flag} {text}: expected a number {limit}, such as {example}")
    return count


def _read(text: str, units: dict[str, int] | dict[str, float]) -> float | None:
    match = _AMOUNT.fullmatch(text.strip().casefold())
    if match is None or match[2] not in units:
        return None
    try:
        return float(match[1]) * units[match[2]]
    except ValueError:
        return None


def gib(size: float) -> str:
    """Returns bytes of memory as 21.3 GiB, small ones as MiB or KiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size >= unit / 10:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 2**10:,.1f} KiB"


def decimal_bytes(size: float) -> str:
    """Returns bytes on a disk as 21.3 GB, of 10^9 bytes."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.1f} kB"


def short_count(count: float) -> str:
    """Returns a number with three digits and a letter: 1.53 B, 274 k."""
    for unit, name in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return (
                f"{count / unit:.3g}{name}"
                if count < 999.5 * unit
                else f"{count / unit:,.0f}{name}"
            )
    return f"{count:.3g}"


def rounded(value: float) -> str:
    """Returns a number as 1,234, or with two digits below ten."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """Returns seconds in the unit that people would use: 11.0 days, 3.1 s, 24 ms."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
