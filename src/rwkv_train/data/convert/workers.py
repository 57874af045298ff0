"""Applies a function to blocks in worker processes: results in order, few of them in flight."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Any, TypeVar

from rwkv_train.errors import DataError

In = TypeVar("In")
Out = TypeVar("Out")

# Values per worker that are on their way or done but not yet taken, the newest included.
IN_FLIGHT = 3
# Given to a process once, when it starts: pickled with every value, it would cost far more.
_function: Callable[[Any], Any] | None = None


def map_in_order(
    function: Callable[[In], Out], values: Iterable[In], workers: int
) -> Generator[Out, None, None]:
    """Yields function(value) for all values, in their order.

    With one worker, or no second value, everything happens in this process. At most IN_FLIGHT
    values per worker are taken whose result is not there, so memory is bounded. Raises what the
    function raises, and DataError when a worker dies.
    """
    rest = iter(values)
    begin = list(islice(rest, 2))
    if workers == 1 or len(begin) < 2:
        yield from map(function, chain(begin, rest))
        return
    # spawn: a forked child would inherit locks that threads of this process hold.
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (function,)
    )
    waiting: deque[Future[Out]] = deque()
    try:
        for value in chain(begin, rest):
            waiting.append(executor.submit(_call, value))
            if len(waiting) >= IN_FLIGHT * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died, perhaps for want of memory; try fewer --workers"
        ) from error
    finally:
        # Waits for running calls, which use files that the caller closes next. Without
        # cancelling it would wait for all the others too before an error is shown.
        executor.shutdown(cancel_futures=True)


def _start(function: Callable[[Any], Any]) -> None:
    """Prepares a worker process."""
    global _function
    _function = function
    # Ctrl-C reaches the whole group; the main process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed main process runs no clean-up; without this its workers would stay.
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """Ends this process when the main one was killed and cannot say so any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only worker processes come here"
    wait([parent.sentinel])
    # sys.exit() would end this thread alone.
    os._exit(1)


def _call(value: Any) -> Any:
    assert _function is not None, "_start() runs first"
    return _function(value)
