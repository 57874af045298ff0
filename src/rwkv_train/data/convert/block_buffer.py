"""Hands blocks of text to the workers through a file that never leaves the memory of the system.

A pipe would copy them in pieces of 64 KB, each of which wakes the other side; for the text of a
corpus that is a third of the main process's time.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rwkv_train.data.convert.shared_file import SharedFile
from rwkv_train.data.text.blocks import BLOCK_BYTES, Content

# A block ends with a whole line, so it can be longer than BLOCK_BYTES by the rest of one.
_SLOT_BYTES = 2 * BLOCK_BYTES


class BufferSlot(NamedTuple):
    """The place of some content in a `BlockBuffer`."""

    offset: int
    length: int


class BlockBuffer:
    """A ring of slots: content must be read before `slots` others are written.

    folder: where its unnamed file is.
    """

    def __init__(self, folder: Path, slots: int) -> None:
        self._file = SharedFile(folder)
        self._slots = slots
        self._next = 0

    def write(self, content: Content) -> Content | BufferSlot:
        """Writes content to the next slot and returns the slot, which is sent to a worker.

        Returns the content itself where it is not bytes (rows of a parquet file) or too long.
        """
        if not isinstance(content, bytes) or len(content) > _SLOT_BYTES:
            return content
        offset = self._next * _SLOT_BYTES
        self._next = (self._next + 1) % self._slots
        self._file.write(content, offset)
        return BufferSlot(offset, len(content))

    def read(self, sent: Content | BufferSlot) -> Content:
        """Returns the content that `write` was given, in any process."""
        return self._file.read(sent.length, sent.offset) if isinstance(sent, BufferSlot) else sent

    def close(self) -> None:
        """Frees the file."""
        self._file.close()
