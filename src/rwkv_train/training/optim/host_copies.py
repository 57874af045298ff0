"""Copies of tensors in the memory of the host, made by the one rank that writes them."""

from __future__ import annotations

import torch
from torch import Tensor

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
        self.kept_bytes = 0

    def keep(self, store: dict[str, Tensor], name: str, value: Tensor) -> None:
        """Puts a copy of `value` into `store`, floats as fp32; nothing where none is kept."""
        if self._keeps:
            store[name] = self.copied(value)

    def copied(self, value: Tensor) -> Tensor:
        """Returns a copy of `value` on the CPU, a float as fp32."""
        # What is not a number format of weights, such as 8-bit codes, is kept as it is.
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        value = value.detach()
        if value.is_cuda:
            copy = self.through_staging(value, dtype)
        else:
            copy = value.to(device="cpu", dtype=dtype, copy=True)
        self.kept_bytes += copy.nbytes
        return copy

    def through_staging(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns a CPU copy of `value` as `dtype`, made a part at a time.

        From a GPU through pinned memory, which its copy engine reaches without the processor. Only
        the buffer is pinned: pinned memory is taken from all programs of the machine.
        """
        if self._staging is None:
            self._staging = torch.empty(
                self._staging_bytes, dtype=torch.uint8, pin_memory=value.is_cuda
            )
        copied = torch.empty(value.shape, dtype=dtype)
        source, target = value.reshape(-1), copied.view(-1)
        rows = self._staging_bytes // copied.element_size()
        for first in range(0, source.numel(), rows):
            part = source[first : first + rows]
            staged = self._staging[: part.numel() * copied.element_size()].view(dtype)
            # It waits for the copy: the buffer is read, and written again, in the next lines.
            staged.copy_(part)
            target[first : first + part.numel()].copy_(staged)
        return copied
