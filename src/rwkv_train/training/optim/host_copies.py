"""Copies of tensors in the memory of the host, made by the one rank that writes them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

from rwkv_train.training.optim.reused_memory import ReusedMemory

# Large enough for the full speed of the bus, small next to any model.
STAGING_BYTES = 64 << 20


class HostCopies:
    """Copies what is given to the CPU, or drops it on a rank that only takes part in gathering.

    keeps: whether this rank needs the copies. staging_bytes: size of the buffer through which a
    GPU's tensors go. kept_bytes: size of all copies made so far.
    """

    def __init__(self, *, keeps: bool, staging_bytes: int = STAGING_BYTES) -> None:
        self._keeps = keeps
        self._staging_bytes = staging_bytes
        self._staging: Tensor | None = None
        self._memory = ReusedMemory()
        self.kept_bytes = 0

    def keep(self, store: dict[str, Tensor], name: str, value: Tensor) -> None:
        """Puts a copy of `value` into `store`, floats as fp32; nothing where none is kept."""
        if self._keeps:
            store[name] = self.copied(value)

    def copied(self, value: Tensor, key: Hashable = None) -> Tensor:
        """Returns a copy of `value` on the CPU, a float as fp32.

        key: what is copied, again and again: the memory of its copy before is taken once more,
        unless that is still in use. None: fresh memory, given back with the copy.
        """
        dtype, value = _kept_format(value), value.detach()
        if key is None:
            copy = torch.empty(value.shape, dtype=dtype)
        else:
            copy = self._memory.lend(key, value.shape, dtype)
        if value.is_cuda:
            self.through_staging(value, copy)
        else:
            copy.copy_(value)
        self.kept_bytes += copy.nbytes
        return copy

    def prepare(self, values: Iterable[tuple[Hashable, Tensor]]) -> None:
        """Begins to take the memory of copies with these keys; the first of them need not wait."""
        self._memory.prepare(
            {key: value.numel() * _kept_format(value).itemsize for key, value in values}
        )

    def through_staging(self, value: Tensor, copy: Tensor) -> None:
        """Copies `value` into `copy`, of its shape and on the CPU, a part at a time.

        From a GPU through pinned memory, which its copy engine reaches without the processor. Only
        the buffer is pinned: pinned memory is taken from all programs of the machine.
        """
        if self._staging is None:
            self._staging = torch.empty(
                self._staging_bytes, dtype=torch.uint8, pin_memory=value.is_cuda
            )
        source, target = value.reshape(-1), copy.view(-1)
        rows = self._staging_bytes // copy.element_size()
        for first in range(0, source.numel(), rows):
            part = source[first : first + rows]
            staged = self._staging[: part.numel() * copy.element_size()].view(copy.dtype)
            # It waits for the copy: the buffer is read, and written again, in the next lines.
            staged.copy_(part)
            target[first : first + part.numel()].copy_(staged)


def _kept_format(value: Tensor) -> torch.dtype:
    # What is not a number format of weights, such as 8-bit codes, is kept as it is.
    return torch.float32 if value.is_floating_point() else value.dtype
