"""Tensors by name that are made when they are asked for: no more of them than that in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """Tensors that `make` returns by their name, each time anew.

    outlines: their shapes and number formats, tensors on the meta device.
    """

    def __init__(self, outlines: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
        self.outlines = dict(outlines)
        self._make = make

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


def picked(tensors: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """Returns the tensors of these names in their order; lazy ones stay lazy."""
    if isinstance(tensors, LazyTensors):
        return LazyTensors({name: tensors.outlines[name] for name in names}, tensors.__getitem__)
    return {name: tensors[name] for name in names}


def outlines_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns shapes and number formats by name, as tensors on the meta device; makes none."""
    if isinstance(tensors, LazyTensors):
        return tensors.outlines
    return {name: value.to("meta") for name, value in tensors.items()}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of tensors by name; makes none."""
    return {name: tuple(outline.shape) for name, outline in outlines_of(tensors).items()}
