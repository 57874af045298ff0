"""The work of `rwkv-embed`: texts in, vectors out; some hundred texts are in memory at a time."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from rwkv_train.errors import CheckpointError, ConfigError, DataError, short_reason
from rwkv_train.files import replacing, write_atomically
from rwkv_train.inference.embed.earlier_end import end_behind
from rwkv_train.inference.embed.input_texts import InputText, input_texts
from rwkv_train.inference.embed.output_place import center_path, facts_path, is_json_lines
from rwkv_train.inference.embed.pooling import pooled_vectors
from rwkv_train.inference.embed.vector_files import (
    Rows,
    RowSpool,
    array_content,
    read_vector,
    vector_lines,
    write_header,
)
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.model_identity import model_identity
from rwkv_train.inference.model_flags import open_given

# A window is sorted by length, so that a batch holds little padding.
_WINDOW_BATCHES = 32
_WINDOW_CHARACTERS = 1 << 24


class EmbeddingProgram:
    """A loaded model, and what was asked of it."""

    def __init__(self, a: argparse.Namespace) -> None:
        """Reads the texts once and loads the model; raises TrainerError for what cannot be done."""
        self._a = a
        self._input, self._output = Path(a.input), Path(a.output)
        self._empty = self._empty_texts()
        loaded = open_given(a)
        self._tokenizer = loaded.tokenizer
        self._model = {
            "model": Path(a.load_model).name,
            "model_identity": model_identity(loaded.model),
            "rwkv_version": loaded.model.config.rwkv_version,
            "precision": str(loaded.model.emb.weight.dtype).removeprefix("torch."),
            "tokenizer": Path(loaded.tokenizer.name).name,
        }
        self._check_ranges(len(loaded.model.blocks), loaded.model.config.vocab_size)
        if a.layer is not None:
            end_behind(loaded.model, a.layer)
        self._engine = Engine(loaded.model)
        self._size = pooled_vectors(self._engine, [[0]], a.pooling).shape[1]
        given = a.center not in (None, "compute")
        self._center = read_vector(Path(a.center), self._size) if given else None
        self._tokens, self._seconds = 0, 0.0

    def run(self) -> None:
        """Writes the vectors and what describes them, and says so."""
        try:
            with replacing(self._output) as partial:
                with partial.open("wb+") as file:
                    zeros = self._write(file)
                if self._a.center == "compute" and self._center is not None:
                    write_atomically(center_path(self._output), array_content(self._center))
                facts = json.dumps(self._facts(), indent=2, ensure_ascii=False) + "\n"
                write_atomically(facts_path(self._output), facts.encode())
        except OSError as error:
            raise DataError(
                f"--output {self._output} cannot be written: {short_reason(error)}; make room or "
                "name another folder"
            ) from error
        self._tell(zeros)

    def _write(self, file: BinaryIO) -> int:
        """Writes the output; returns how many texts that say something have a vector of zeros."""
        if not is_json_lines(self._output):
            write_header(file, len(self._empty), self._size)
            return self._fill(RowSpool(file, self._size))
        # The numbers of a line are finished only when all texts have been read.
        with tempfile.TemporaryFile(dir=self._output.parent) as storage:
            spool = RowSpool(storage, self._size)
            zeros = self._fill(spool)
            names = (text.id for text in input_texts(self._input, self._a.text_key))
            file.writelines(vector_lines(names, spool))
        return zeros

    def _fill(self, spool: RowSpool) -> int:
        for rows in self._rows():
            spool.append(rows)
        if spool.count != len(self._empty):
            raise DataError(f"--input {self._input} was changed while it was read; try again")
        if self._a.center == "compute":
            self._center = self._mean_of(spool)
        return self._finish(spool)

    def _rows(self) -> Iterator[Rows]:
        """Yields the vectors of all texts in their order, [some, size]."""
        with tqdm(total=len(self._empty), unit=" texts", disable=None, leave=False) as bar:
            for window in self._windows():
                start = time.perf_counter()
                rows = self._rows_of(window)
                self._seconds += time.perf_counter() - start
                bar.update(len(window))
                yield rows

    def _windows(self) -> Iterator[list[InputText]]:
        window: list[InputText] = []
        characters = 0
        for text in input_texts(self._input, self._a.text_key):
            window.append(text)
            characters += len(text.text)
            if len(window) == self._a.batch * _WINDOW_BATCHES or characters > _WINDOW_CHARACTERS:
                yield window
                window, characters = [], 0
        if window:
            yield window

    def _rows_of(self, window: Sequence[InputText]) -> Rows:
        ids = [self._ids(text) for text in window]
        full = sorted((n for n, tokens in enumerate(ids) if tokens), key=lambda n: len(ids[n]))
        rows = np.zeros((len(window), self._size), np.float32)
        for first in range(0, len(full), self._a.batch):
            batch = full[first : first + self._a.batch]
            rows[batch] = pooled_vectors(
                self._engine, [ids[n] for n in batch], self._a.pooling
            ).numpy()
            for n in batch:
                self._require_finite(rows[n], window[n])
                self._tokens += len(ids[n])
        return rows

    def _ids(self, text: InputText) -> list[int]:
        """Returns the tokens to read, none for an empty text."""
        if not text.text:
            return []
        whole = f"{self._a.prefix}{text.text}{self._a.suffix}"
        try:
            ids = self._tokenizer.encode(whole)
        except DataError as error:
            raise DataError(f"--input {self._input}, line {text.line}: {error}") from error
        return ids if self._a.append is None else [*ids, self._a.append]

    def _finish(self, spool: RowSpool) -> int:
        """Centers and normalizes every row; returns how many have become zero."""
        zeros = 0
        for first, rows in spool.blocks():
            full = ~self._empty[first : first + len(rows)]
            if self._center is not None:
                rows[full] -= self._center
            norms = np.linalg.norm(rows.astype(np.float64), axis=1)
            zeros += int((full & (norms == 0)).sum())
            if self._a.normalize:
                rows /= np.where(norms > 0, norms, 1.0)[:, None]
            spool.replace(first, rows)
        return zeros

    def _mean_of(self, spool: RowSpool) -> Rows:
        total = np.zeros(self._size)
        for _, rows in spool.blocks():
            total += rows.sum(0, dtype=np.float64)
        mean: Rows = (total / (~self._empty).sum()).astype(np.float32)
        return mean

    def _empty_texts(self) -> npt.NDArray[np.bool_]:
        """Returns which texts are empty; DataError for a file that cannot be read to its end."""
        texts = input_texts(self._input, self._a.text_key)
        empty = np.fromiter((not text.text for text in texts), np.bool_)
        if not len(empty):
            raise DataError(f"--input {self._input} holds no text")
        if self._a.center == "compute" and (~empty).sum() < 2:
            raise ConfigError(
                "--center compute needs two texts at least, for one minus itself is nothing"
            )
        return empty

    def _check_ranges(self, layers: int, vocab_size: int) -> None:
        layer, append = self._a.layer, self._a.append
        if layer is not None and not 0 <= layer < layers:
            raise ConfigError(f"--layer {layer}: the model has layers 0 to {layers - 1}")
        if append is not None and not 0 <= append < vocab_size:
            raise ConfigError(f"--append {append}: the model has tokens 0 to {vocab_size - 1}")

    def _require_finite(self, row: Rows, text: InputText) -> None:
        if not np.isfinite(row).all():
            raise CheckpointError(
                f"--input {self._input}, line {text.line}: the vector is not finite; use "
                "--precision fp32, or another checkpoint"
            )

    def _facts(self) -> dict[str, Any]:
        a = self._a
        beside = {"states": a.load_states, "lora": a.lora, "center": a.center}
        return {
            **self._model,
            **{name: path and Path(path).name for name, path in beside.items()},
            **{name: getattr(a, name) for name in ("pooling", "layer", "prefix", "suffix")},
            "append": a.append,
            "normalize": bool(a.normalize),
            "dimension": self._size,
            "texts": len(self._empty),
            "empty": int(self._empty.sum()),
            "tokens": self._tokens,
        }

    def _tell(self, zeros: int) -> None:
        count, empty = len(self._empty), int(self._empty.sum())
        if empty:
            print(f"WARNING: {empty} of {count} texts are empty; theirs are zeros", file=sys.stderr)
        if zeros:
            print(f"WARNING: {zeros} vectors are zero and have no direction", file=sys.stderr)
        rate = self._tokens / self._seconds if self._seconds else 0.0
        print(
            f"wrote {self._output}: {count} vectors of {self._size} numbers from {self._tokens} "
            f"tokens, {rate:.0f} tokens/s; {facts_path(self._output).name} says how they were made"
        )
