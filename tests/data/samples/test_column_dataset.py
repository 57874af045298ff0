"""Columns of samples: cut from the whole sample, with the number and position of the whole."""

from __future__ import annotations

import torch

from rwkv_train.data.samples.batch import Sample
from rwkv_train.data.samples.bptt_windows import WindowDataset
from rwkv_train.data.samples.column_dataset import ColumnDataset


class Rows:
    """Sample n is the tokens 100 n, 100 n + 1, ..., with everything that a sample may have."""

    def __getitem__(self, number: int) -> Sample:
        tokens = 100 * number + torch.arange(12)
        return Sample(tokens, tokens + 1, tokens / 2, tokens % 3 == 0, fault="torn", number=number)


def test_a_superchunk_is_cut_from_the_window_with_targets_of_the_whole():
    windows = WindowDataset(Rows(), 6)
    second = ColumnDataset(windows, [(1, 2), (4, 6)])
    sample = second[3, 1]
    # the window is 306 ... 311
    assert sample.tokens.tolist() == [307, 310, 311]
    # Of the next piece's first token, not of the next token that is here.
    assert sample.targets.tolist() == [308, 311, 312]
    assert sample.mask.tolist() == [153.5, 155, 155.5]
    # 309 starts a document, which lies on another rank; a piece's first token starts none.
    assert sample.reset.tolist() == [False, False, False]
    assert (sample.number, sample.position, sample.fault) == (3, 6, "torn")


def test_all_columns_are_the_sample():
    windows = WindowDataset(Rows(), 12)
    parts = [ColumnDataset(windows, [part])[1, 0] for part in ((0, 5), (5, 12))]
    whole = windows[1, 0]
    for name in ("tokens", "targets", "mask", "reset"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))


def test_what_a_sample_lacks_its_columns_lack():
    class Plain:
        def __getitem__(self, number: int) -> Sample:
            return Sample(torch.arange(4), torch.arange(1, 5))

    sample = ColumnDataset(Plain(), [(2, 4)])[0]
    assert sample.mask is None and sample.reset is None
