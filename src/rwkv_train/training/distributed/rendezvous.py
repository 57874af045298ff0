"""The place where the processes of a run meet: a store that rank zero or a launcher holds.

Found out here, before anybody waits in a collective call: an address that leads nowhere, a port in
use, two processes of one rank, machines that count differently, a machine that does not come.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from datetime import timedelta
from pathlib import Path

# torch.distributed names them in no __all__.
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store

from rwkv_train.errors import ConfigError, TrainingError
from rwkv_train.training.distributed.rank_store import ANNOUNCED_AFTER_SECONDS, RankStore
from rwkv_train.training.launchers.launch import LOOPBACK, Launch

# A process of a launcher may train several times, and meets the others at one place only.
_ANSWER_SECONDS = 60.0
_ALL_THERE = "all-there"
_met: dict[tuple[str, int, int, int], tuple[TCPStore, int]] = {}


class LateRankError(ConfigError):
    """Raised by a process for which a run that has all its ranks has no place."""


def meet(launch: Launch, seconds: float) -> tuple[TCPStore, str]:
    """Returns the connection to the store, and the beginning of this run's keys in it.

    Raises ConfigError for a place where no store can be, TrainingError when nobody answers there
    for so many seconds.
    """
    place = (launch.main_address, launch.main_port, launch.rank, launch.attempt)
    store, runs = _met[place] if place in _met else (_connect(launch, seconds), 0)
    if launch.main_port:
        _met[place] = (store, runs + 1)
    return store, f"rwkv/{launch.attempt}/{runs}"


def connection(store: TCPStore, beginning: str, name: str = "") -> Store:
    """Returns a connection of its own: one that waits holds up all other users of it."""
    own = _client(store.host, store.port, _ANSWER_SECONDS)
    return PrefixStore(f"{beginning}/{name}", own)


def check_place(ranks: RankStore, store: Store, launch: Launch) -> None:
    """Raises ConfigError when this process does not fit those that have come before it."""
    own = f"{launch.num_nodes} machine(s) with {launch.local_size} process(es) each"
    first = json.loads(store.compare_set("machines", "", json.dumps(own)))
    if first != own:
        raise ConfigError(
            f"this machine counts {own}, another one {first}; give the same --devices and "
            "--num_nodes everywhere"
        )
    if not ranks.take_place():
        # Before all are there one of them is missing, and the others would wait for it.
        kind = LateRankError if store.check([_ALL_THERE]) else ConfigError
        raise kind(
            f"another process is rank {launch.rank} of {launch.world_size} at "
            f"{launch.main_address}:{launch.main_port} already: NODE_RANK must differ from machine "
            "to machine, and MASTER_PORT from run to run"
        )


def check_all_there(ranks: RankStore, store: Store, launch: Launch) -> None:
    """Returns once all ranks have come this far. Collective.

    Raises ConfigError when they are on more machines than the run has, RemoteRankError when one of
    them has left.
    """
    hosts = sorted(set(ranks.gather("host", ranks.host)))
    store.set(_ALL_THERE, "1")
    if launch.num_nodes == 1 and len(hosts) > 1:
        raise ConfigError(
            f"the run has one machine, but its processes are on {', '.join(hosts)}; give "
            "--num_nodes and --devices"
        )


@contextmanager
def announced(what: str, speaks: bool) -> Iterator[None]:
    """Says what is waited for once it takes long, if this process is the one to say it."""
    if not speaks:
        yield
        return

    def say() -> None:
        print(f"waiting for {what} ...", file=sys.stderr, flush=True)

    timer = threading.Timer(ANNOUNCED_AFTER_SECONDS, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _connect(launch: Launch, seconds: float) -> TCPStore:
    _check_resolves(launch.main_address)
    if launch.rank == 0 and not launch.agent_store:
        return _host(launch, seconds)
    place = f"{launch.main_address}:{launch.main_port}"
    who = "rank 0" if launch.num_nodes == 1 else "machine 0"
    with announced(f"{who} at {place}", launch.local_rank == 0 or launch.num_nodes == 1):
        try:
            _wait_until_open(launch.main_address, launch.main_port, seconds)
        except OSError as error:
            raise TrainingError(
                f"{who} did not answer at {place} for {seconds:g} s: start it too, check that "
                "MASTER_ADDR and MASTER_PORT are the same everywhere and that no firewall lies "
                "between, or give --dist_timeout SECONDS"
            ) from error
        store = _client_in_time(launch.main_address, launch.main_port, seconds)
    if store is None:
        raise TrainingError(
            f"who listens at {place} is not {who} of a run: another program has the port. Set "
            "MASTER_PORT to a free one, the same for all processes"
        )
    return store


def _client_in_time(address: str, port: int, seconds: float) -> TCPStore | None:
    """Returns a connection to the store that listens there; None when it is no store."""
    made: list[TCPStore] = []

    def connect() -> None:
        with suppress(RuntimeError):
            made.append(_client(address, port, seconds))

    # torch waits without an end for the first word of a program that says none.
    thread = threading.Thread(target=connect, daemon=True)
    with _without_native_messages():
        thread.start()
        thread.join(seconds)
    return made[0] if made else None


@contextmanager
def _without_native_messages() -> Iterator[None]:
    """Keeps off the terminal what libraries in C++ print, pages of addresses; not our own lines."""
    if sys.stderr is not sys.__stderr__ or sys.stderr is None:
        # Somebody catches what is printed, or there is nothing to print on.
        yield
        return
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace") as stream:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
        try:
            with redirect_stderr(stream):
                yield
        finally:
            os.dup2(stream.fileno(), 2)


def _wait_until_open(address: str, port: int, seconds: float) -> None:
    """Returns once somebody listens there; raises OSError when nobody does in time."""
    # TCPStore would try too, and print a warning at every attempt.
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=max(1.0, seconds)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _client(address: str, port: int, seconds: float) -> TCPStore:
    return TCPStore(
        address, port, is_master=False, timeout=timedelta(seconds=seconds), wait_for_workers=False
    )


def _host(launch: Launch, seconds: float) -> TCPStore:
    """Returns the store that this process holds; raises ConfigError when it cannot."""
    port = launch.main_port
    listener = None
    if launch.num_nodes > 1:
        _refuse_a_second_first(launch)
    elif port == 0:
        # All processes are here, and nobody else is to reach them.
        with socket.create_server((LOOPBACK, 0), backlog=launch.world_size) as server:
            port, listener = server.getsockname()[1], server.detach()
    try:
        # Through the main address a machine behind NAT would not reach itself.
        return TCPStore(
            LOOPBACK,
            port,
            is_master=True,
            master_listen_fd=listener,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        reason = "is in use" if "EADDRINUSE" in str(error) else "cannot be opened"
        raise ConfigError(
            f"MASTER_PORT={port} {reason} on this machine; set MASTER_PORT to a free one, the same "
            "for all processes"
        ) from error


def _refuse_a_second_first(launch: Launch) -> None:
    """Raises ConfigError when the main address is another machine, and somebody listens there."""
    for address in _resolved(launch.main_address):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, 0))
            except OSError:
                continue
            return
    try:
        socket.create_connection((launch.main_address, launch.main_port), timeout=2).close()
    except OSError:
        # An address of a router or a service, behind which this machine may well be.
        return
    raise ConfigError(
        f"this machine has NODE_RANK=0, but {launch.main_address} is another one, and a run is "
        "there; set NODE_RANK to this machine's number, and to 0 on the machine of MASTER_ADDR only"
    )


def _check_resolves(address: str) -> None:
    try:
        _resolved(address)
    except OSError as error:
        raise ConfigError(
            f"MASTER_ADDR={address} is no machine that this one knows ({error.strerror}); give the "
            "first machine's name or address"
        ) from error


def _resolved(address: str) -> set[str]:
    """Returns the addresses behind a name."""
    return {str(entry[4][0]) for entry in socket.getaddrinfo(address, None)}
