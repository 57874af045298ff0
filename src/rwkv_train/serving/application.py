"""The server's paths: OpenAI's, the state of health, the page."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rwkv_train.serving.batching.batch_jobs import VectorJob
from rwkv_train.serving.batching.batch_worker import BatchWorker
from rwkv_train.serving.batching.job_events import Began, Ended, Pooled, Wrote
from rwkv_train.serving.http_guard import Guard, read_body
from rwkv_train.serving.openai_api.answer_bodies import AnswerBodies
from rwkv_train.serving.openai_api.api_errors import RequestError
from rwkv_train.serving.openai_api.embedding_requests import EmbeddingRequest, embedding_request
from rwkv_train.serving.openai_api.request_fields import json_object
from rwkv_train.serving.openai_api.text_requests import (
    TextRequest,
    chat_request,
    completion_request,
)
from rwkv_train.serving.served_model import ServedModel
from rwkv_train.serving.waiting import ClientGoneError, JobEvents, while_connected

Parsed = TypeVar("Parsed")
# Beyond the limit of a request, for a client to take what was written for it.
_SECONDS_TO_TAKE = 60
# The page needs nothing from elsewhere, and nobody shows it inside another one.
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class EventStream(Response):
    """Server-sent events, until there are no more or the client leaves."""

    def __init__(self, events: AsyncGenerator[bytes, None], seconds: float) -> None:
        super().__init__(
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
            media_type="text/event-stream",
        )
        # Of a body that is still to come nobody knows the length.
        del self.headers["content-length"]
        self._events = events
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, as ASGI asks for it."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        try:
            await while_connected(receive, self._send_all(send), self._seconds)
        except ClientGoneError:
            return

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class ModelApplication:
    """Answers requests to one model.

    log: takes a line about every request to the model.
    """

    def __init__(
        self, model: ServedModel, worker: BatchWorker, log: Callable[[str], None] = lambda _: None
    ) -> None:
        self._model = model
        self._worker = worker
        self._log = log
        self._page = files("rwkv_train.serving").joinpath("chat_page.html").read_bytes()

    def asgi(self, keys: tuple[str, ...] = (), hosts: tuple[str, ...] = ()) -> Guard:
        """Returns the application; keys, hosts: as `Guard`."""
        routes = [
            Route("/", self._show_page),
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/v1/chat/completions", partial(self._text, chat_request), methods=["POST"]),
            Route("/v1/completions", partial(self._text, completion_request), methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {
            RequestError: _refused,
            HTTPException: _no_such_path,
            ClientGoneError: _nobody,
            ClientDisconnect: _nobody,
            Exception: _own_fault,
        }
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._life)
        return Guard(app, keys, hosts)

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        self._worker.start()
        yield
        self._worker.close()

    async def _show_page(self, _: Request) -> Response:
        return Response(self._page, media_type="text/html", headers=_PAGE_HEADERS)

    async def _health(self, _: Request) -> Response:
        places, waiting = self._worker.occupied()
        told = {
            "status": "ok" if self._worker.alive else "stopped",
            "model": self._model.name,
            "active": places,
            "waiting": waiting,
            "kept_states": len(self._worker.cache),
            "kept_bytes": self._worker.cache.size,
        }
        return _json(told, 200 if self._worker.alive else 503)

    async def _models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [self._described()]})

    async def _one_model(self, request: Request) -> Response:
        if request.path_params["name"] != self._model.name:
            message = f"there is only the model {self._model.name!r} here"
            raise RequestError(message, status=404, param="model", code="model_not_found")
        return _json(self._described())

    def _described(self) -> dict[str, Any]:
        model = self._model
        return {
            "id": model.name,
            "object": "model",
            "created": model.created,
            "owned_by": "rwkv-serve",
            "max_prompt_tokens": model.limits.prompt_tokens,
            "max_answer_tokens": model.limits.answer_tokens,
        }

    async def _parsed(
        self, request: Request, parse: Callable[[ServedModel, Any], Parsed]
    ) -> Parsed:
        content = await read_body(request, self._model.limits)
        # Millions of characters take a while, in which others are to be answered.
        return await run_in_threadpool(lambda: parse(self._model, json_object(content)))

    async def _text(
        self, parse: Callable[[ServedModel, Any], TextRequest], request: Request
    ) -> Response:
        asked = await self._parsed(request, parse)
        bodies = AnswerBodies(self._model, asked)
        events = self._events(asked, bodies, request.url.path)
        if not asked.stream:
            await while_connected(request.receive, _all(events, bodies))
            return _json(bodies.whole())
        # Whether there is room shows with the first event, while a status can still be given.
        first = await while_connected(request.receive, anext(events))
        limit = self._model.limits.request_seconds + _SECONDS_TO_TAKE
        return EventStream(_streamed(first, events, asked, bodies), limit)

    async def _events(
        self, asked: TextRequest, bodies: AnswerBodies, path: str
    ) -> AsyncGenerator[Began | Wrote | Ended, None]:
        """Yields what happens until all texts have ended."""
        start, received = time.monotonic(), JobEvents()
        jobs = asked.jobs(self._model, received.receive)
        left = len(asked.prompts) * asked.choices
        ended = "the client has left"
        try:
            async with aclosing(
                received.of(self._worker, jobs, self._model.limits.request_seconds)
            ) as events:
                async for event in events:
                    if isinstance(event, Began):
                        bodies.usage.cached += event.cached
                    left -= isinstance(event, Ended)
                    if isinstance(event, Began | Wrote | Ended):
                        yield event
                    if not left:
                        break
            ended = "done"
        except RequestError as error:
            ended = str(error)
            raise
        finally:
            usage = bodies.usage
            written = sum(len(choice.writer.tokens) for job in jobs for choice in job.choices)
            self._log(
                f"{path}: read {usage.prompt} tokens ({usage.cached} known), wrote {written}"
                f" in {time.monotonic() - start:.2f} s, {ended}"
            )

    async def _embeddings(self, request: Request) -> Response:
        asked = await self._parsed(request, embedding_request)
        vectors = await while_connected(request.receive, self._vectors(asked))
        return _json(asked.body(vectors, self._model))

    async def _vectors(self, asked: EmbeddingRequest) -> list[Any]:
        start, received = time.monotonic(), JobEvents()
        job = VectorJob(asked.texts, received.receive, self._model.pooling)
        found: dict[int, Any] = {}
        limit = self._model.limits.request_seconds
        async with aclosing(received.of(self._worker, [job], limit)) as events:
            async for event in events:
                if isinstance(event, Pooled):
                    found[event.text] = event.vector
                if len(found) == len(asked.texts):
                    break
        tokens = sum(map(len, asked.texts))
        self._log(f"/v1/embeddings: read {tokens} tokens in {time.monotonic() - start:.2f} s, done")
        return [found[index] for index in range(len(asked.texts))]


async def _all(events: AsyncGenerator[Began | Wrote | Ended, None], bodies: AnswerBodies) -> None:
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Began):
                bodies.add(event)


async def _streamed(
    first: Began | Wrote | Ended,
    events: AsyncGenerator[Began | Wrote | Ended, None],
    asked: TextRequest,
    bodies: AnswerBodies,
) -> AsyncGenerator[bytes, None]:
    """Yields the lines of a stream."""
    async with aclosing(events):
        for chunk in bodies.opening():
            yield _line(chunk)
        try:
            if not isinstance(first, Began):
                for chunk in bodies.chunks(first):
                    yield _line(chunk)
            async for event in events:
                if not isinstance(event, Began):
                    for chunk in bodies.chunks(event):
                        yield _line(chunk)
        except RequestError as error:
            yield _line(error.body())
            return
        if asked.include_usage:
            yield _line(bodies.usage_chunk())
        yield b"data: [DONE]\n\n"


def _line(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


async def _refused(_: Request, error: RequestError) -> Response:
    answer = _json(error.body(), error.status)
    if error.status == 429:
        answer.headers["retry-after"] = "1"
    if error.status in (408, 413):
        # The rest of what was sent is not read.
        answer.headers["connection"] = "close"
    return answer


async def _no_such_path(request: Request, error: HTTPException) -> Response:
    path = f"{request.method} {request.url.path:.100}"
    posted = "POST /v1/chat/completions, POST /v1/completions, POST /v1/embeddings"
    known = f"{posted}, GET /v1/models, GET /health and GET /"
    message = f"{path} is not answered here, only {known}"
    return _json(RequestError(message, status=error.status_code).body(), error.status_code)


async def _nobody(_: Request, __: Exception) -> Response:
    # It is not read by anybody.
    return Response(status_code=499)


async def _own_fault(_: Request, error: Exception) -> Response:
    message = f"the server failed ({type(error).__name__}); its console has more"
    return _json(RequestError(message, status=500).body(), 500)
