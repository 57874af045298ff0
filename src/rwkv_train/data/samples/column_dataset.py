"""Columns of samples, where several processes share the tokens of each.

Targets, weights and resets are cut from the sample, and never made of a piece: the target of a
piece's last token is the first one of the next piece, and a piece's start is no document's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rwkv_train.data.samples.batch import Sample


class ColumnDataset(Dataset[Sample]):
    """The samples of `rows` without the tokens that other processes hold.

    columns: (begin, end) of the places that stay, in order.
    """

    def __init__(self, rows: Dataset[Sample], columns: Sequence[tuple[int, int]]) -> None:
        self._rows = rows
        self._columns = columns

    def __getitem__(self, key: object) -> Sample:
        """Returns the columns of the sample `key`, with number and position of the whole."""
        row = self._rows[key]
        return row._replace(
            tokens=self._cut(row.tokens),
            targets=self._cut(row.targets),
            mask=None if row.mask is None else self._cut(row.mask),
            reset=None if row.reset is None else self._cut(row.reset),
        )

    def _cut(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[begin:end] for begin, end in self._columns])
