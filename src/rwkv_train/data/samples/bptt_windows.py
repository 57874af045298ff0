"""Rows read in windows, for truncated backpropagation: the order of windows.

With W windows per row, optimizer step S reads window S mod W of the rows that step S div W would
read whole. So a row's windows follow each other at the same place of the micro batch, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Dataset, Sampler

from rwkv_train.data.samples.batch import Sample
from rwkv_train.data.sampling.sampler import SampleNumbers


class WindowNumbers(Sampler[tuple[int, int]]):
    """(global sample number, window) of one process, in order; holds no list.

    rows: the numbers of whole rows, with the batch and the rank of this process; its own first_step
    and steps are not used.
    first_step, steps: optimizer steps, a window each.
    """

    def __init__(self, rows: SampleNumbers, windows: int, first_step: int, steps: int) -> None:
        assert windows >= 1, f"{windows} windows per row"
        self._rows = rows
        self._windows = windows
        self._first_step = first_step
        self._steps = steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self._first_step, self._first_step + self._steps):
            group, window = divmod(step, self._windows)
            for number in self._rows.of_step(group):
                yield number, window

    def __len__(self) -> int:
        return self._steps * self._rows.per_step


class WindowDataset(Dataset[Sample]):
    """Windows of `window_len` tokens of the samples of `rows`, by (sample number, window)."""

    def __init__(self, rows: Dataset[Sample], window_len: int) -> None:
        self._rows = rows
        self._window_len = window_len

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Returns the window of a row by (sample number, window), with its position in the row."""
        number, window = key
        # Read anew for every window: successive windows of a row may fall to different workers.
        row = self._rows[number]
        position = window * self._window_len
        columns = slice(position, position + self._window_len)
        return row._replace(
            tokens=row.tokens[columns],
            targets=row.targets[columns],
            mask=None if row.mask is None else row.mask[columns],
            reset=None if row.reset is None else row.reset[columns],
            position=position,
        )
