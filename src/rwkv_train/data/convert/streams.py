"""Work done in a thread while its caller goes on: SHA-256 digests, the next of some batches."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Batch = TypeVar("Batch")

# Hashing less takes about as long as starting a thread.
_WORTH_A_THREAD = 1 << 18


class BackgroundSha256:
    """A SHA-256 that is one update behind its caller, who must not change what was given."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread: threading.Thread | None = None

    def update(self, content: Any) -> None:
        """Adds bytes; returns when those given before have been added."""
        self._wait()
        if memoryview(content).nbytes < _WORTH_A_THREAD:
            self._sha256.update(content)
        else:
            self._thread = threading.Thread(target=self._sha256.update, args=(content,))
            self._thread.start()

    def hexdigest(self) -> str:
        """The digest of all that was added."""
        self._wait()
        return self._sha256.hexdigest()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def read_ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same batches; each is made in a thread while the one before it is used."""
    iterator = iter(batches)
    # Leaving waits for the thread, which may be reading files that are closed next.
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(list, islice(iterator, 1))
        while batch := following.result():
            following = thread.submit(list, islice(iterator, 1))
            yield from batch
