"""A request that waits in the event loop for what the batching thread does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from rwkv_train.serving.batching.batch_jobs import BatchJob
from rwkv_train.serving.batching.batch_worker import BatchWorker, QueueFullError
from rwkv_train.serving.batching.job_events import Failed, JobEvent
from rwkv_train.serving.openai_api.api_errors import RequestError

T = TypeVar("T")
_TOO_LATE = Failed("")


class JobEvents:
    """Reports of a request's jobs, in the event loop in which this is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[JobEvent] = asyncio.Queue()

    def receive(self, event: JobEvent) -> None:
        """Takes an event. From any thread."""
        # The loop is closed when the server ends before a job does.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def of(
        self, worker: BatchWorker, jobs: Sequence[BatchJob], seconds: float
    ) -> AsyncGenerator[JobEvent, None]:
        """Hands the jobs over and yields what happens; the caller stops asking at the end.

        However it ends, no place is taken afterwards.  seconds: the longest that it may take.
        Raises RequestError when there is no room, no time, or a fault.
        """
        try:
            worker.submit(jobs)
        except QueueFullError:
            raise RequestError(
                "too many requests wait already; try again in a while",
                status=429,
                code="overloaded",
            ) from None
        late = self._loop.call_later(seconds, self._events.put_nowait, _TOO_LATE)
        try:
            while True:
                event = await self._events.get()
                if event is _TOO_LATE:
                    message = (
                        f"the answer takes longer than {seconds:g} seconds, this server's limit"
                    )
                    raise RequestError(message, status=408, code="timeout")
                if isinstance(event, Failed):
                    raise RequestError(f"the model failed: {event.reason}", status=500)
                yield event
        finally:
            late.cancel()
            worker.cancel(jobs)


class ClientGoneError(Exception):
    """Raised when nobody waits for the answer any more."""


async def while_connected(
    receive: Callable[[], Awaitable[Any]],
    work: Coroutine[Any, Any, T],
    seconds: float | None = None,
) -> T:
    """Returns what the work returns; ends it, with ClientGoneError, when the client leaves first.

    receive: ASGI's, of a request whose body was read.  seconds: the longest to wait for the work;
    then it is ended as if the client had left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    both = {working, leaving}
    try:
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
