"""Names of those that hold project folders: the words in a `run.lock`."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from socket import gethostname

# More than any system's process numbers.
MOST_PROCESSES = 1 << 31


@dataclass(frozen=True)
class Owner:
    """A run that works in a folder.

    id: random, "": an older version's, which had none. boot: of the machine's kernel, equal in all
    its containers; container: its process numbers' namespace. process 0: nothing is known.
    host and since (local time, ISO 8601): for people.
    """

    id: str = ""
    process: int = 0
    host: str = ""
    since: str = ""
    boot: str = ""
    container: str = ""

    def __str__(self) -> str:
        if not self.process:
            return "a run that has not said its name"
        return f"process {self.process} on {self.host}, since {self.since}"

    @classmethod
    def of_this_process(cls, since: str) -> Owner:
        """Returns the owner that this process is, under a new id."""
        return cls(secrets.token_hex(8), os.getpid(), gethostname(), since, boot_id(), _container())

    def in_this_container(self) -> bool:
        """Tells whether its process number means here what it meant there."""
        return self.boot == boot_id() and self.container == _container()

    def to_json(self) -> bytes:
        """Returns the content of a lock file."""
        return json.dumps(asdict(self)).encode() + b"\n"


def read_owner(content: bytes) -> Owner | None:
    """Returns the owner that a lock file names; None when it names none in our words."""
    try:
        values = json.loads(content)
        found = {f.name: values[f.name] for f in fields(Owner) if f.name in values}
        texts = [found[name] for name in found if name != "process"]
        # One line, also when somebody has written into the file.
        plain = all(isinstance(text, str) and text.isprintable() for text in texts)
        if plain and {"host", "since"} <= found.keys() and 0 < found["process"] < MOST_PROCESSES:
            return Owner(**{**found, "process": int(found["process"])})
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        # Empty, when its writer was killed between making and filling it.
        pass
    return None


def boot_id() -> str:
    """Returns a name for this start of the machine; "" where none is known."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def is_alive(process: int) -> bool:
    """Tells whether a process of this machine runs, or may run."""
    if os.name != "posix":
        # There, asking would end the process.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _container() -> str:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""
