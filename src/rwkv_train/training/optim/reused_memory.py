"""Memory of the host that is lent for the copies of one save and again for those of the next.

Fresh memory costs several times what copying into it does: the system clears every page and maps it
at the first touch. So what one save has touched is kept for the next one, and touched for the first
one by a thread beside training.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor


class ReusedMemory:
    """Lends a block for every key, the same one each time, and keeps it in between.

    A block that somebody still reads is never lent again: another one takes its place.
    """

    def __init__(self) -> None:
        self._blocks: dict[Hashable, Tensor] = {}
        self._lent: dict[Hashable, weakref.ref[memoryview]] = {}
        self._preparing: threading.Thread | None = None

    def prepare(self, sizes: Mapping[Hashable, int]) -> None:
        """Begins to take blocks of these bytes by their keys; `lend` waits for the end of it."""
        self._wait()
        missing = {key: size for key, size in sizes.items() if size and key not in self._blocks}
        # A daemon: a run that ends now needs none of it.
        self._preparing = threading.Thread(
            target=self._take, args=(missing,), name="memory for saves", daemon=True
        )
        self._preparing.start()

    def lend(self, key: Hashable, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns a tensor on the CPU with whatever values its block has."""
        self._wait()
        size = torch.Size(shape).numel() * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        if self._is_read(key) or key not in self._blocks or self._blocks[key].numel() != size:
            # First given back: never both at once.
            self._blocks.pop(key, None)
            self._blocks[key] = torch.empty(size, dtype=torch.uint8)
        # The tensor and all its views keep it alive, which a tensor's own object does not tell.
        view = self._blocks[key].numpy().data
        self._lent[key] = weakref.ref(view)
        return torch.frombuffer(view, dtype=dtype).view(shape)

    def _take(self, sizes: Mapping[Hashable, int]) -> None:
        for key, size in sizes.items():
            block = torch.empty(size, dtype=torch.uint8)
            # Not by torch, which would start threads for it; this one leaves the interpreter alone.
            ctypes.memset(block.data_ptr(), 0, size)
            self._blocks[key] = block

    def _wait(self) -> None:
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None

    def _is_read(self, key: Hashable) -> bool:
        lent = self._lent.get(key)
        return lent is not None and lent() is not None
