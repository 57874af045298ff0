"""Memory for Python's frames, taken once: a call that just does not fit is not mapped each time.

CPython 3.11 and later keep the frames of calls in pieces of 16 KiB. A call for which the last piece
has no room maps a new one, and its return unmaps that. Where a loop happens to stand at the end of
a piece every call in it costs two system calls and a page fault: half of a run's time was seen.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TypeVar

T = TypeVar("T")
# Words of the frame that opens a piece. The piece is the next power of two above its 512 KiB, and
# what is left of it, as much again, is for the frames of everything that is called from there.
_FRAME_WORDS = 1 << 16


def _call(function: Callable[[], T]) -> T:
    return function()


_call_with_room = FunctionType(_call.__code__.replace(co_stacksize=_FRAME_WORDS), globals())


def with_frame_memory(function: Callable[[], T]) -> T:
    """Returns what `function` returns; it and all that it calls share one piece for their frames.

    The memory is addresses only until frames lie in it.
    """
    result: T = _call_with_room(function)
    return result
