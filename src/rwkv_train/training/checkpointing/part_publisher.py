"""Completes, on the first rank, what all ranks have written into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_train.checkpoint.lazy_tensors import LazyTensors, outlines_of
from rwkv_train.checkpoint.memory_shortage import write_fault
from rwkv_train.checkpoint.names import STATE_SUFFIX
from rwkv_train.checkpoint.resume import state_path
from rwkv_train.checkpoint.state_folder import complete_folder, list_parts, read_parts
from rwkv_train.checkpoint.state_manifest import PartFile
from rwkv_train.checkpoint.state_parts import entry_name
from rwkv_train.files import publish, remove
from rwkv_train.training.checkpointing.state_writer import StateWriter
from rwkv_train.training.checkpointing.weights_apart import write_apart

# A smaller file is written before another process has started.
_WORTH_A_PROCESS = 256 << 20


class PartPublisher:
    """Makes a training state of parts, and the files of weights next to it.

    frozen: values of the parameters that do not learn, by name. order: of the model's parameters.
    """

    def __init__(self, writer: StateWriter, frozen: Mapping[str, Tensor]) -> None:
        self._writer = writer
        self._frozen = frozen
        self.order: list[str] = []

    def kept_frozen(self) -> dict[str, Tensor]:
        """Returns what does not learn, and belongs to the state all the same."""
        return {name: self._frozen[name] for name in self._writer.kept_names(self._frozen)}

    def plain_values(self, captured: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the first rank's part holds besides tensors."""
        return self._writer.plain_values(captured)

    def publish(
        self, path: Path, folder: Path, parts: Sequence[PartFile], plain: Mapping[str, Any]
    ) -> None:
        """Writes the weights `path`, unless that is a state itself, then gives the state its name.

        Raises CheckpointError; what was there before is then unchanged.
        """
        with _faults_of(path):
            list_parts(folder, len(parts), [entry_name(("weights", name)) for name in self.order])
            late: dict[str, Any] = {}
            if path.suffix != STATE_SUFFIX:
                about = self._writer.about(path, plain["step"])
                digest = self._write_weights(path, folder, about)
                late["weights_digest"] = self._writer.note_weights(path, plain["step"], digest)
            late["written"] = self._writer.written()
            saved = state_path(path)
            digest = complete_folder(folder, parts, {**plain, **late})
            self._writer.make_way(saved)
            publish(folder, saved)
            self._writer.note_state(saved, digest, plain)

    def publish_weights(
        self, path: Path, folder: Path, parts: Sequence[PartFile], about: Mapping[str, Any]
    ) -> None:
        """Writes the weights `path` alone, and removes the parts; raises as `publish`."""
        with _faults_of(path):
            list_parts(folder, len(parts), [entry_name(("weights", name)) for name in self.order])
            self._write_weights(path, folder, about)
            remove(folder)

    def _write_weights(self, path: Path, folder: Path, about: Mapping[str, Any]) -> str | None:
        """Writes the files of weights; returns the digest of `path` if it was computed."""
        writer = self._writer
        parts: Mapping[str, Tensor] = read_parts(folder)["weights"]
        if writer.is_whole_model and _bytes(parts, writer.dtype) >= _WORTH_A_PROCESS:
            writer.keep_others(path, about)
            return write_apart(folder, path, writer.dtype, about)
        writer.write_files(path, self._with_frozen(parts), about)
        return None

    def _with_frozen(self, parts: Mapping[str, Tensor]) -> LazyTensors:
        """Returns all weights of the model, each read when it is asked for."""
        outlines = outlines_of(self._frozen) | outlines_of(parts)
        ordered = {name: outlines[name] for name in self.order if name in outlines}
        return LazyTensors(ordered, lambda name: (parts if name in parts else self._frozen)[name])


def _bytes(weights: Mapping[str, Tensor], dtype: torch.dtype) -> int:
    return sum(outline.numel() for outline in outlines_of(weights).values()) * dtype.itemsize


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Makes what a disk says a CheckpointError about `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise write_fault(path, error) from error
