"""Writer of the binidx pair (files: `layout`) and of the loss mask next to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.layout import (
    HEADER,
    MAGIC,
    MAX_ITEM_TOKENS,
    VERSION,
    bin_path,
    dtype_code,
    idx_path,
    mask_path,
)
from rwkv_train.data.storage.durable import close_durably, create_file
from rwkv_train.data.storage.hashing import BackgroundSha256
from rwkv_train.errors import DataError
from rwkv_train.files import partial_path, sync_folder

# Items whose pointers are computed at a time, so that closing a large index needs little memory.
_BLOCK = 1 << 20


class BinidxWriter:
    """Writes a pair under temporary names next to the final ones, which appear at the end.

    `append` a document at a time, then `close`. As a context manager it closes on success and
    removes everything it wrote when an exception passes. `tokens` and `documents` count what was
    appended, `sha256` is the digest of the .bin so far. A `masked` one also writes the weights of
    the tokens: `supervised_tokens` counts those above 0, `sha256_mask` is the digest.
    """

    def __init__(self, prefix: str | Path, dtype: npt.DTypeLike, *, masked: bool = False) -> None:
        self.prefix = str(prefix)
        self.masked = masked
        self.supervised_tokens = 0
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._code = dtype_code(self.dtype)
        self.tokens = 0
        self.items = 0
        # Items that continue a document; usually none, so that no list of documents is kept.
        self._continued: list[int] = []
        self._sha256 = BackgroundSha256()
        self._sha256_mask = BackgroundSha256()
        paths = [bin_path(prefix), idx_path(prefix), *([mask_path(prefix)] if masked else [])]
        self._paths = {path: partial_path(path) for path in paths}
        self._published: list[Path] = []
        self._finished = False
        self._files = [create_file(partial) for partial in self._paths.values()]
        self._bin, self._idx = self._files[:2]
        # Zeros stand for the header until all is written: a cut-off index is none to any reader.
        self._idx.write(bytes(HEADER.size))

    @property
    def documents(self) -> int:
        return self.items - len(self._continued)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def sha256_mask(self) -> str | None:
        return self._sha256_mask.hexdigest() if self.masked else None

    def append(self, tokens: npt.ArrayLike, *, continues: bool = False) -> None:
        """Adds one item: a document, or with `continues` a further part of the last one.

        tokens: [length] integers.  Raises DataError when one does not fit the data type.
        """
        stored = self._converted(np.asarray(tokens))
        if continues:
            assert self.items > 0, "the first item starts a document"
            self._continued.append(self.items)
        self.append_documents(stored, np.array([stored.size], np.int32))

    def append_documents(
        self,
        tokens: npt.NDArray[Any],
        sizes: npt.NDArray[np.int32],
        weights: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        """Adds documents that lie one after another in `tokens`, which has the pair's type.

        weights: of the tokens, if the writer is masked.
        """
        assert tokens.dtype == self.dtype, f"{tokens.dtype} is not {self.dtype}"
        assert (weights is not None) == self.masked, "a masked writer takes weights, no other does"
        assert tokens.size == sizes.sum(dtype=np.int64), "sizes do not add up"
        # The digest's thread reads the same bytes, which are not changed afterwards.
        raw = np.ascontiguousarray(tokens).data.cast("B") if tokens.size else b""
        self._bin.write(raw)
        self._sha256.update(raw)
        if weights is not None:
            self._append_weights(weights, tokens.size)
        self._idx.write(sizes.astype("<i4").tobytes())
        self.items += len(sizes)
        self.tokens += tokens.size

    def close(self) -> None:
        """Completes the pair and gives it its final names, replacing an older pair."""
        publish_pairs([self])

    def finish(self) -> None:
        """Completes both files under their temporary names and forces them to disk."""
        if self._finished:
            return
        if self.tokens == 0:
            raise DataError(f"there are no tokens to write to {bin_path(self.prefix)}")
        # The pointers are made from the sizes, which are read back through another handle.
        self._idx.flush()
        for block in self._pointer_blocks():
            self._idx.write(block.tobytes())
        for block in self._document_blocks():
            self._idx.write(block.tobytes())
        header = HEADER.pack(MAGIC, VERSION, self._code, self.items, self.documents + 1)
        self._idx.seek(0)
        self._idx.write(header)
        for file in self._files:
            close_durably(file)
        self._finished = True

    def abort(self) -> None:
        """Removes what was written; a pair that is already complete under its name stays."""
        for file in self._files:
            # Closing flushes, which fails again on a full disk.
            with contextlib.suppress(OSError):
                file.close()
        for partial in self._paths.values():
            partial.unlink(missing_ok=True)
        # Without its index a pair is not complete under its name.
        if idx_path(self.prefix) not in self._published:
            for path in self._published:
                path.unlink(missing_ok=True)

    def rename(self, path: Path) -> None:
        """Gives a finished file, .bin, .idx or .mask, its final name."""
        assert self._finished, "finish() first"
        self._paths[path].replace(path)
        self._published.append(path)

    def _append_weights(self, weights: npt.NDArray[np.uint8], tokens: int) -> None:
        assert weights.dtype == np.uint8 and weights.size == tokens, "one byte per token"
        raw = weights.tobytes()
        self._files[2].write(raw)
        self._sha256_mask.update(raw)
        self.supervised_tokens += int(np.count_nonzero(weights))

    def __enter__(self) -> BinidxWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            # Also after close(), which may fail half way; a complete pair stays.
            self.abort()

    def _converted(self, tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if tokens.ndim != 1 or tokens.size > MAX_ITEM_TOKENS:
            raise DataError(
                f"an item is one row of at most {MAX_ITEM_TOKENS} tokens, got {tokens.shape}"
            )
        if tokens.size and tokens.dtype != self.dtype:
            limits = np.iinfo(self.dtype)
            low, high = int(tokens.min()), int(tokens.max())
            if tokens.dtype.kind not in "iu" or low < limits.min or high > limits.max:
                raise DataError(
                    f"tokens from {low} to {high} ({tokens.dtype}) do not fit {self.dtype.name}, "
                    f"the data type of {bin_path(self.prefix)}"
                )
        return tokens.astype(self.dtype)

    def _pointer_blocks(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yields the byte offset of every item, from the sizes already written to the index."""
        end = 0
        with self._paths[idx_path(self.prefix)].open("rb") as written:
            written.seek(HEADER.size)
            for first in range(0, self.items, _BLOCK):
                count = min(_BLOCK, self.items - first)
                # Widened before the product, which may exceed 2^31 for one long item.
                sizes = np.fromfile(written, "<i4", count).astype("<i8") * self.dtype.itemsize
                ends = end + np.cumsum(sizes)
                yield (ends - sizes).astype("<i8")
                end = int(ends[-1])

    def _document_blocks(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yields the item with which every document starts, then the item count."""
        continued = np.asarray(self._continued, "<i8")
        for first in range(0, self.items + 1, _BLOCK):
            items = np.arange(first, min(first + _BLOCK, self.items + 1), dtype="<i8")
            yield items[~np.isin(items, continued)]


def publish_pairs(
    writers: Sequence[BinidxWriter], between: Callable[[], None] | None = None
) -> None:
    """Completes several pairs and gives all of them their final names, replacing older pairs.

    Whenever this is interrupted, every pair that can be opened is a correct one: the old indexes
    disappear first, and the new ones appear last. `between` runs after the former (manifests).
    A loss mask of an older pair goes too.
    """
    for writer in writers:
        writer.finish()
    # Renames are durable once their folders are: each stage is flushed before the next begins.
    folders = {bin_path(writer.prefix).parent for writer in writers}
    for writer in writers:
        idx_path(writer.prefix).unlink(missing_ok=True)
    for folder in folders:
        sync_folder(folder)
    for writer in writers:
        # An old mask next to new tokens would weigh the wrong ones.
        mask_path(writer.prefix).unlink(missing_ok=True)
    if between is not None:
        between()
    for path in (bin_path, mask_path, idx_path):
        # The first pair becomes readable last: once it is there, so are the others.
        for writer in reversed(writers):
            if writer.masked or path is not mask_path:
                writer.rename(path(writer.prefix))
        for folder in folders:
            sync_folder(folder)
