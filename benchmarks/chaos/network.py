"""Hosts of one machine: network namespaces on a switch, whose links can be cut.

A namespace lives as long as a process in it. Each gets a holder, a process that does nothing and
dies with this one, so that nothing is left however this one ends: no name, no link, no address.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_NEW_NETWORK, _NEW_NAMES = 0x40000000, 0x04000000
_PR_SET_PDEATHSIG = 1
_PREFIX = "10.213.8"
_INTERFACE = "eth0"


class Network:
    """So many hosts: in namespaces where the system allows it, else they are one.

    refusal: why there are no namespaces, "" where there are.
    """

    def __init__(self, count: int, *, namespaces: bool = True) -> None:
        self._holders: list[int] = []
        self.refusal = "not asked for"
        if namespaces:
            self.refusal = _refusal()
        if self.refusal:
            return
        try:
            self._holders = [_hold("switch"), *(_hold(f"host{n}") for n in range(count))]
            self._connect(count)
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            told = getattr(error, "stderr", None) or str(error)
            self.refusal = f"the system refuses namespaces: {told.strip()}"

    def __str__(self) -> str:
        return f"one host ({self.refusal})" if self.refusal else "hosts in network namespaces"

    def address(self, host: int) -> str:
        """Returns the address of a host."""
        return "127.0.0.1" if self.refusal else f"{_PREFIX}.{host + 1}"

    def enter(self, host: int) -> None:
        """Moves this process, which must have one thread, to a host."""
        if self.refusal:
            return
        holder = self._holders[1 + host]
        for name in ("net", "uts"):
            with Path(f"/proc/{holder}/ns/{name}").open("rb") as namespace:
                _call("setns", namespace.fileno(), 0)

    def cut(self, host: int) -> None:
        """Takes the link of a host down: what is sent to it or from it is lost."""
        self._link(host, "down")

    def heal(self, host: int) -> None:
        """Takes the link of a host up again."""
        self._link(host, "up")

    def close(self) -> None:
        """Ends all hosts; nothing may run there any more."""
        for holder in self._holders:
            with suppress(ProcessLookupError):
                os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)
        self._holders = []

    def _connect(self, count: int) -> None:
        switch = self._holders[0]
        _ip(switch, "link", "add", "switch", "type", "bridge")
        _ip(switch, "link", "set", "switch", "up")
        for host in range(count):
            holder = self._holders[1 + host]
            ends = ("link", "add", f"host{host}", "type", "veth", "peer", "name", _INTERFACE)
            _ip(switch, *ends, "netns", str(holder))
            _ip(switch, "link", "set", f"host{host}", "master", "switch", "up")
            _ip(holder, "addr", "add", f"{self.address(host)}/24", "dev", _INTERFACE)
            for interface in ("lo", _INTERFACE):
                _ip(holder, "link", "set", interface, "up")

    def _link(self, host: int, state: str) -> None:
        assert not self.refusal, "hosts without namespaces have no link of their own"
        _ip(self._holders[0], "link", "set", f"host{host}", state)


def _refusal() -> str:
    """Returns why namespaces need not be tried; "" where they may work."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    missing = [name for name in ("ip", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"needs the program{'s' * (len(missing) > 1)} {' and '.join(missing)}"
    return "" if os.geteuid() == 0 else "network namespaces need root"


def _hold(name: str) -> int:
    """Returns the process id of a holder of new namespaces, once it has them. Raises OSError."""
    parent = os.getpid()
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            os.close(read)
            _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
            _call("unshare", _NEW_NETWORK | _NEW_NAMES)
            socket.sethostname(name)
            os.write(write, b"ready")
            os.close(write)
            while os.getppid() == parent:
                signal.pause()
        except OSError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    if told != b"ready":
        os.waitpid(holder, 0)
        raise OSError(told.decode() or "a namespace could not be made")
    return holder


def _call(name: str, *arguments: int) -> None:
    """Calls a function of the C library. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _ip(holder: int, *words: str) -> None:
    """Runs ip in the namespace of a holder. Raises CalledProcessError."""
    command = ["nsenter", "-t", str(holder), "-n", "ip", *words]
    subprocess.run(command, check=True, capture_output=True, text=True)
