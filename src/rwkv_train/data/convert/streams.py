"""Batches on their way to disk: made one ahead in a thread, and shown as a progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from rwkv_train.data.binidx.document_reader import WeightedDocuments

Made = TypeVar("Made")


def read_ahead(batches: Iterable[Made]) -> Iterator[Made]:
    """Yields the same batches; each is made in a thread while the one before it is used."""
    iterator = iter(batches)
    # Leaving waits for the thread, which may be reading files that are closed next.
    with ThreadPoolExecutor(1) as thread:
        # A list of one or none, because a StopIteration must not leave a future.
        following = thread.submit(list, islice(iterator, 1))
        while batch := following.result():
            following = thread.submit(list, islice(iterator, 1))
            yield from batch


def shown_while_written(
    batches: Iterable[WeightedDocuments], tokens: int
) -> Iterator[WeightedDocuments]:
    """Passes batches of documents on, showing tokens/s and the time left of `tokens` in all.

    The bar appears on a terminal only.
    """
    with tqdm(total=tokens, unit=" tokens", unit_scale=True, desc="writing", disable=None) as bar:
        for batch in batches:
            yield batch
            # After the yield: what counts is what was written, not what was read.
            bar.update(batch.tokens.size)
