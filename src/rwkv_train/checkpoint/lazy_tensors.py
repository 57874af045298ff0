"""Tensors by name that are made when they are asked for: no more of them than that in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that `make` returns by their name, each time anew.

    outlines: their shapes and number formats, tensors on the meta device. fill: writes the elements
    of a tensor from a place on into a tensor [n]; without one the whole tensor is made for that.
    """

    def __init__(
        self,
        outlines: Mapping[str, Tensor],
        make: Callable[[str], Tensor],
        fill: Callable[[str, int, Tensor], None] | None = None,
    ) -> None:
        self.outlines = dict(outlines)
        self._make = make
        self._fill = fill

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.outlines:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self.outlines

    def __iter__(self) -> Iterator[str]:
        return iter(self.outlines)

    def __len__(self) -> int:
        return len(self.outlines)

    def fill(self, name: str, first: int, target: Tensor) -> None:
        """Writes the elements of a tensor from `first` on into `target`, [n], as its format."""
        if self._fill is not None:
            self._fill(name, first, target)
        else:
            target.copy_(self[name].reshape(-1)[first : first + target.numel()])


def picked(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """Returns the tensors of these names in their order; lazy ones stay lazy."""
    if isinstance(tensors, LazyTensors):
        outlines = {name: tensors.outlines[name] for name in names}
        return LazyTensors(outlines, tensors.__getitem__, tensors.fill)
    return {name: tensors[name] for name in names}


def write_into(target: Tensor, tensors: Mapping[str, Tensor], name: str, first: int = 0) -> None:
    """Writes the elements of a tensor from `first` on into all of `target`, on any device.

    Lazy ones are read into it a little at a time: no second copy of a tensor is made.
    """
    flat = target.detach().view(-1)
    if isinstance(tensors, LazyTensors):
        tensors.fill(name, first, flat)
    else:
        flat.copy_(tensors[name].detach().reshape(-1)[first : first + flat.numel()])


def copied_to(device: torch.device, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Returns a copy of a tensor on a device, its own and no view, without another beside it."""
    outline = outline_of(tensors, name)
    copy = torch.empty(outline.shape, dtype=outline.dtype, device=device)
    write_into(copy, tensors, name)
    return copy


def outline_of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Returns shape and number format of a tensor, on the meta device; makes none."""
    return tensors.outlines[name] if isinstance(tensors, LazyTensors) else tensors[name].to("meta")


def outlines_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns shapes and number formats by name, as tensors on the meta device; makes none."""
    return {name: outline_of(tensors, name) for name in tensors}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of tensors by name; makes none."""
    return {name: tuple(outline.shape) for name, outline in outlines_of(tensors).items()}
