"""SHA-256 digests of files and of what is being written."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from rwkv_train.errors import DataError

# Hashing less takes about as long as starting a thread.
_WORTH_A_THREAD = 1 << 18


class BackgroundSha256:
    """A SHA-256 that is one update behind its caller, who must not change what was given.

    hashlib releases the interpreter's lock for large updates, so hashing costs a converting process
    next to nothing where a second core is free.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread: threading.Thread | None = None

    def update(self, content: bytes | memoryview) -> None:
        """Adds bytes; returns when those given before have been added."""
        self._wait()
        if memoryview(content).nbytes < _WORTH_A_THREAD:
            self._sha256.update(content)
        else:
            self._thread = threading.Thread(target=self._sha256.update, args=(content,))
            self._thread.start()

    def hexdigest(self) -> str:
        """Returns the digest of all that was added."""
        self._wait()
        return self._sha256.hexdigest()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def file_sha256(path: str | Path) -> str:
    """Returns the digest of a file's bytes, read in blocks; DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
