"""Asks a process that stands still: for its stack, whether it is stopped, for its sockets.

The stack is faulthandler's, which needs nothing of the thread that it shows. Linux tells the rest.
"""

from __future__ import annotations

import faulthandler
import re
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

# faulthandler's own words.
_FRAME = re.compile(r'File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>\S+)')


def own_stack() -> str:
    """Returns the stack of this process's main thread, as faulthandler prints it.

    Where no file can take it, a line that says so: who asks has to go on.
    """
    try:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file.fileno(), all_threads=True)
            file.seek(0)
            dumped = file.read().decode(errors="replace")
    except OSError as error:
        return f"its stack is not known: no temporary file can be written ({error.strerror})"
    main = f"0x{threading.main_thread().ident or 0:016x}"
    threads = re.split(r"\n(?=(?:Current thread|Thread) 0x)", dumped)
    # faulthandler lists at most 100 threads.
    return next((each.strip() for each in threads if main in each), dumped)


def short_stack(stack: str, frames: int = 4) -> str:
    """Returns the innermost calls of a stack in one line, the innermost first."""
    found = [
        f"{Path(match['file']).name}:{match['line']} {match['name']}"
        for match in _FRAME.finditer(stack)
    ]
    return " < ".join(found[:frames])


def is_stopped(process: int) -> bool:
    """Tells whether a process of this machine is stopped, as by SIGSTOP; False if unknown."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in ("T", "t")


def unanswered_peers() -> list[str]:
    """Returns the addresses that do not acknowledge what this process has sent them.

    As the system knows by its retransmissions (Linux; [] elsewhere): a dead link shows there long
    before a timeout.
    """
    own, found = _own_sockets(), set()
    for family, size, table in ((socket.AF_INET, 4, "tcp"), (socket.AF_INET6, 16, "tcp6")):
        try:
            lines = Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            # number, local, remote, state, sent:received, timer, retransmissions, user, -, inode
            words = line.split()
            if words[9] in own and int(words[4].partition(":")[0], 16) and int(words[6], 16):
                # In 32-bit words of this machine's order.
                remote = words[2].partition(":")[0]
                parts = (bytes.fromhex(remote[i : i + 8]) for i in range(0, 2 * size, 8))
                swaps = sys.byteorder == "little"
                packed = b"".join(part[::-1] if swaps else part for part in parts)
                found.add(socket.inet_ntop(family, packed).removeprefix("::ffff:"))
    return sorted(found)


def _own_sockets() -> set[str]:
    """Returns the inodes of this process's sockets."""
    found = set()
    with suppress(OSError):
        for link in Path("/proc/self/fd").iterdir():
            # The folder itself is one of them, and closed by then.
            with suppress(OSError):
                kind, _, inode = str(link.readlink()).partition(":")
                if kind == "socket":
                    found.add(inode.strip("[]"))
    return found
