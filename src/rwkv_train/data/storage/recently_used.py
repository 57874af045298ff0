"""A bound on what a process holds of many files: descriptors, maps.

What was used least is let go first, by the second-chance rule: a thing that was used since it was
last looked at goes to the end of the queue once more. A use then costs a flag, not a lock.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Holder(Protocol):
    """Something that can do without what it holds, and get it again.

    was_used: set by every use, taken back here.
    """

    was_used: bool

    def let_go(self) -> None:
        """Gives back what is held; who uses it at this moment keeps it until done."""


class RecentlyUsed:
    """The holders of a process that hold something, at most `most()` of them.

    Without a lock, because every operation on the queue is atomic: so a process may fork while
    another of its threads reads. A holder that nobody needs any more is not kept.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._queue: deque[weakref.ref[Holder]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, holder: Holder) -> None:
        """Counts a holder that has just got what it holds; others let go where it is too many."""
        self._queue.append(weakref.ref(holder))
        self.reduce_to(self._most())

    def reduce_to(self, most: int) -> None:
        """Lets all but `most` holders give back what they hold."""
        # Twice round: at the first time every one of them may have been used.
        for _ in range(2 * len(self._queue)):
            if len(self._queue) <= most:
                return
            try:
                reference = self._queue.popleft()
            except IndexError:
                # Another thread was faster.
                return
            holder = reference()
            if holder is None:
                continue
            if holder.was_used:
                holder.was_used = False
                self._queue.append(reference)
            else:
                holder.let_go()
