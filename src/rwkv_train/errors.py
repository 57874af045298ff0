"""The kinds of fault a user can meet.

Every message says what was given, what was expected and what to do. The entry points print it and
leave with exit status 2 (bad input: nothing is written or overwritten on the way), or 1 for a
TrainingError.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

# Of torch's allocators, of the C++ library behind the kernels, of a file that is mapped, and of a
# loader process.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|can't allocate memory|bad_alloc|out of memory|cannot allocate memory"
    r"|DataLoader worker .* killed by signal: Killed",
    re.IGNORECASE,
)
# Exit statuses; those of a run are in training/launchers/exit_statuses.py.
FAULT = 1
REFUSED = 2


def missing_package(user: str, package: str, extra: str) -> str:
    """Returns the message for a user, such as a flag or a file, that needs an uninstalled package.

    extra: the group of pyproject.toml's optional dependencies that brings it.
    """
    return (
        f"{user} needs the Python package {package}: pip install {package}, or pip install "
        f"'rwkv-train[{extra}]'"
    )


class TrainerError(Exception):
    """Base of all; entry points catch this one."""

    def in_one_line(self) -> str:
        """Joins the lines of the message, as entry points print it."""
        lines = (line.strip() for line in str(self).splitlines())
        return "; ".join(lines).replace(":; ", ": ")


class ConfigError(TrainerError):
    """Raised by `config` and `training` when flags are wrong or contradict each other."""


class DataError(TrainerError):
    """Raised by `data` when a corpus, a tokenizer or a binidx pair cannot be used."""


class CheckpointError(TrainerError):
    """Raised by `checkpoint` when weights or a training state cannot be read, written or fitted."""


class BackendError(TrainerError):
    """Raised by `ops` when a backend asked for by name cannot serve the call."""


class TrainingError(TrainerError):
    """Raised by `training` when a run that was set up well cannot continue (a loss that is NaN)."""


class MemoryShortageError(TrainingError):
    """Raised by `checkpoint` when memory does not suffice to read a file, which may be intact."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an exception says that memory was asked for in vain."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        # torch's own class for GPUs is one too, and says so.
        return _OUT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


def exit_status(error: TrainerError) -> int:
    """Returns the exit status for a fault: 2 for bad input, 1 when training cannot continue."""
    return FAULT if isinstance(error, TrainingError) else REFUSED


def short_reason(error: Exception) -> str:
    """Returns the first sentence of a library's message, whose advice seldom fits the user."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:200]


def first_few(items: Sequence[str], most: int = 4, separator: str = ", ") -> str:
    """Returns a list as a message can hold it: the first `most` items and the number of others."""
    shown = separator.join(items[:most])
    return f"{shown} and {len(items) - most:,} more" if len(items) > most else shown
