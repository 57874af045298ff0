"""The process that listens: its socket, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rwkv_train.errors import ConfigError
from rwkv_train.serving.served_model import ServingLimits

_WORDS = b"the head of the request took too long\n"
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_WORDS), _WORDS)
)
# Connections beside those of requests that write or wait: pages, health checks, idle clients.
_OTHER_CONNECTIONS = 256


def bound_socket(host: str, port: int) -> socket.socket:
    """Returns a socket of that address, where nobody may connect yet; port 0: a free one.

    Raises ConfigError when the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--host {host} is no address: {error.strerror}") from error
    found = socket.socket(family, kind, protocol)
    try:
        # A server that was killed a moment ago leaves connections behind.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"cannot listen at {host} port {port}: {error.strerror}; end the program that does, or "
            "give another --port"
        ) from error
    return found


class _HeadTimeout(H11Protocol):
    """HTTP as uvicorn speaks it, for clients that send the head of a request in time."""

    seconds = 20.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Waits on, or no more when a head is complete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._waiting is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._waiting = self.loop.call_later(self.seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self.transport.write(_TOO_SLOW)
        self.transport.close()


class EndableServer(uvicorn.Server):
    """A server that ends by SIGTERM and SIGINT after what it has begun, and at once by a second.

    interrupted: whether it was Ctrl-C.
    """

    interrupted = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listens to signals, and does not raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            # Python hands signals to the main thread alone.
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, self._end)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, number: int, _: Any) -> None:
        self.interrupted = number == signal.SIGINT
        self.force_exit = self.should_exit
        self.should_exit = True


def build_server(app: Any, limits: ServingLimits, *, shutdown_seconds: int) -> EndableServer:
    """Returns a server that answers by an application as soon as it is started.

    app: of ASGI.  shutdown_seconds: for answers that were begun before its end was asked for.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    protocol = type("HeadTimeout", (_HeadTimeout,), {"seconds": limits.body_seconds})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=shutdown_seconds,
        limit_concurrency=limits.places + limits.queue + _OTHER_CONNECTIONS,
    )
    return EndableServer(config)


def serve_until_ended(server: EndableServer, listening: socket.socket) -> bool:
    """Answers requests until a signal ends it; returns whether that was Ctrl-C.

    listening: of `bound_socket`; its clients may connect already.
    """
    asyncio.run(server.serve(sockets=[listening]))
    return server.interrupted
