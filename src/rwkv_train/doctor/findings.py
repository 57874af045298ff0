"""A check's answers: what it found, how bad that is, and the command that remedies it."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Union

# skip: nothing was looked at, for a reason.
Severity = Literal["ok", "warn", "fault", "skip"]
# Package managers of systems -> how they install.
_MANAGERS = {
    "apt-get": "sudo apt-get install",
    "dnf": "sudo dnf install",
    "yum": "sudo yum install",
    "zypper": "sudo zypper install",
    "apk": "sudo apk add",
    "pacman": "sudo pacman -S",
    "brew": "brew install",
}
# Where a manager calls the package of g++ otherwise.
_COMPILERS = {"dnf": "gcc-c++", "yum": "gcc-c++", "zypper": "gcc-c++", "pacman": "gcc"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    found: what was seen, in a line. remedy: a command, or words where none does it; "" without a
    fault. measured: the figures in it, in the units that their names carry, for --json.
    """

    level: Severity
    found: str
    remedy: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as an object of JSON."""
        return asdict(self)


# A check yields findings and, as plain words, what it does next: should it crash there or not end,
# these words tell where.
# Union: an alias is made at once, and an old Python must come as far as being told so.
Said = Union[Finding, str]  # noqa: UP007
Answers = Iterator[Said]


def good(found: str, **measured: Any) -> Finding:
    """Returns what is as it should be."""
    return Finding("ok", found, measured=measured)


def warning(found: str, remedy: str, **measured: Any) -> Finding:
    """Returns what slows a run or may end it later, but does not keep it from starting."""
    return Finding("warn", found, remedy, measured)


def fault(found: str, remedy: str, **measured: Any) -> Finding:
    """Returns what keeps a run from starting, or makes it several times slower."""
    return Finding("fault", found, remedy, measured)


def skipped(reason: str, remedy: str = "") -> Finding:
    """Returns why there was nothing to look at."""
    return Finding("skip", reason, remedy)


def pip_install(*requirements: str, force: bool = False) -> str:
    """Returns the command that installs packages for this Python; force: over what is there."""
    options = ["--force-reinstall", "--no-deps"] if force else []
    return shlex.join([sys.executable, "-m", "pip", "install", *options, *requirements])


def install_compiler() -> str:
    """Returns the command by which this system installs a C++ compiler."""
    for manager, command in _MANAGERS.items():
        if shutil.which(manager):
            return f"{command} {_COMPILERS.get(manager, 'g++')}"
    return "install g++ 10 or newer, or clang++"


def in_one_line(text: str, length: int = 240) -> str:
    """Returns a text of others, such as a library's message, on one line of bounded length."""
    words = " ".join(text.split())
    return words if len(words) <= length else f"{words[: length - 4]} ..."


def bytes_text(count: float) -> str:
    """Returns a number of bytes as people read it: "64.0 MiB"."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
