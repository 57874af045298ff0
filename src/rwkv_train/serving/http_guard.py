"""Doors of the server: keys, names, and the size and slowness of a request."""

from __future__ import annotations

import asyncio
import hmac

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rwkv_train.serving.openai_api.api_errors import RequestError
from rwkv_train.serving.served_model import ServingLimits

# Of a body that is too large, so much is taken and dropped, as clients send all before they listen.
_DROPPED_BODIES = 8


class Guard:
    """Lets requests through to an application, or answers them itself.

    keys: of which requests to /v1 must bring one; none: all may ask.
    hosts: by which names the server may be called; none: by any. Without them a page from
    elsewhere could, by a name of its own for this machine, read the answers in a visitor's browser.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], hosts: tuple[str, ...]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, as ASGI asks for it."""
        if scope["type"] == "http":
            try:
                self._check(scope["method"], scope["path"], Headers(scope=scope))
            except RequestError as error:
                headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
                content = orjson.dumps(error.body())
                answer = Response(content, error.status, headers, media_type="application/json")
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        if self._hosts and _name(headers.get("host", "")) not in self._hosts:
            raise RequestError(
                f"this server is not called {headers.get('host', '')!r:.100}; its names are "
                f"{', '.join(sorted(self._hosts))}, and --allowed_host gives it another",
                status=403,
            )
        if path.startswith("/v1") and self._keys:
            self._check_key(headers.get("authorization", ""))
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        # A form of another page would come with a type of its own, without asking first.
        if method == "POST" and kind != "application/json":
            raise RequestError(
                f"the content-type is {kind!r:.100}; send application/json", status=415
            )

    def _check_key(self, authorization: str) -> None:
        scheme, _, given = authorization.partition(" ")
        # Every key is compared, and wholly: the time tells nothing.
        fits = [hmac.compare_digest(given.strip().encode(), key) for key in self._keys]
        if scheme.lower() != "bearer" or not any(fits):
            raise RequestError(
                "a key of this server is needed, as 'Authorization: Bearer KEY'",
                status=401,
                code="invalid_api_key",
            )


async def read_body(request: Request, limits: ServingLimits) -> bytes:
    """Returns a request's content; RequestError when it is too large or too slow."""
    try:
        return await asyncio.wait_for(_read_body(request, limits.body_bytes), limits.body_seconds)
    except asyncio.TimeoutError:
        raise RequestError(
            f"the body has not arrived within {limits.body_seconds:g} seconds", status=408
        ) from None


async def _read_body(request: Request, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= most:
            parts.append(part)
        else:
            parts.clear()
        if size > _DROPPED_BODIES * most:
            break
    if size > most:
        raise RequestError(
            f"the body is larger than {most} bytes, the most that this server takes", status=413
        )
    return b"".join(parts)


def _name(host: str) -> str:
    """Returns the name in a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[").lower()
    return host.partition(":")[0].lower()
