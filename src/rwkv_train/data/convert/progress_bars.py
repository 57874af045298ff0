"""Progress bars of long work, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Batch = TypeVar("Batch", bound=tuple)


def shown_while_written(batches: Iterable[Batch], tokens: int) -> Iterator[Batch]:
    """Passes batches on, whose first field is an array of tokens, and shows tokens/s and the time
    left of `tokens` in all."""
    with tqdm(total=tokens, unit=" tokens", unit_scale=True, desc="writing", disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(batch[0].size)
