"""Checks of how processes find one another: host name, loopback, MASTER_ADDR."""

from __future__ import annotations

import shlex
import socket
from pathlib import Path

from rwkv_train.doctor.findings import Answers, Finding, fault, good, warning
from rwkv_train.errors import ConfigError
from rwkv_train.training.environment import variables
from rwkv_train.training.launchers.launch import LOOPBACK, Variables

_ANSWER_S = 5.0


def check_network(folder: Path) -> Answers:
    """Yields whether the host's name resolves, loopback connects, and MASTER_ADDR is a machine."""
    name = socket.gethostname()
    yield f"resolve {name}"
    faults = 0
    addresses = _resolved(name)
    if not addresses:
        faults += 1
        given = Variables(variables())
        several = given.text("MASTER_ADDR", "NODE_RANK", "GROUP_RANK", "SLURM_STEP_NODELIST")
        report = fault if several else warning
        yield report(
            f"the host's name {name} does not resolve: a run on this machine alone takes "
            f"{LOOPBACK} instead, several machines do not find one another",
            f"echo {shlex.quote(f'127.0.1.1 {name}')} | sudo tee -a /etc/hosts",
        )
    yield f"connect to {LOOPBACK}"
    reason = _loopback_fault()
    if reason is not None:
        faults += 1
        yield fault(
            f"a process cannot be reached at {LOOPBACK}: {reason}",
            "sudo ip link set lo up; or let the firewall pass: sudo iptables -I INPUT -i lo -j "
            "ACCEPT",
        )
    for said in _main_address():
        faults += isinstance(said, Finding)
        yield said
    if not faults:
        yield good(f"{name} is {', '.join(addresses)}; {LOOPBACK} connects")


def _main_address() -> Answers:
    given = Variables(variables())
    address, node = given.text("MASTER_ADDR"), given.text("NODE_RANK", "GROUP_RANK")
    if address is None:
        return
    yield f"resolve MASTER_ADDR={address}"
    addresses = _resolved(address)
    if not addresses:
        yield fault(
            f"MASTER_ADDR={address} is no machine that this one knows",
            "export MASTER_ADDR=ADDRESS of the first machine, or unset MASTER_ADDR",
        )
    elif all(found.startswith("127.") or found == "::1" for found in addresses) and node not in (
        None,
        "0",
    ):
        yield fault(
            f"MASTER_ADDR={address} is this machine itself, which is number {node}: it would wait "
            "for a first one here",
            "export MASTER_ADDR=ADDRESS of the first machine as the others see it",
        )
    try:
        port = given.port()
    except ConfigError:
        # The check of variables has told.
        return
    if port is not None and node in (None, "0") and _is_taken(port):
        yield warning(
            f"MASTER_PORT={port} is in use on this machine",
            "export MASTER_PORT=29511, the same on all machines, or end who listens there",
        )


def _resolved(name: str) -> list[str]:
    try:
        return sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except (OSError, UnicodeError):
        return []


def _loopback_fault() -> str | None:
    """Returns why two sockets of this machine cannot speak to each other, None where they can."""
    try:
        with socket.create_server((LOOPBACK, 0)) as server:
            server.settimeout(_ANSWER_S)
            place = server.getsockname()
            with socket.create_connection(place, timeout=_ANSWER_S) as client:
                accepted, _ = server.accept()
                with accepted:
                    client.sendall(b"word")
                    accepted.settimeout(_ANSWER_S)
                    return None if accepted.recv(4) == b"word" else "what arrives is not what left"
    except OSError as error:
        return error.strerror or str(error)


def _is_taken(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return True
    return False
