"""Tokens for tests of samples: a source that counts, and a small pair."""

from __future__ import annotations

import numpy as np

from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.writer import BinidxWriter


class Counting:
    """A source whose token at place i is i, as long as one likes."""

    def __init__(self, tokens):
        self.tokens = tokens

    def get(self, offset, length):
        assert offset >= 0 and offset + length <= self.tokens
        return np.arange(offset, offset + length, dtype=np.int64)


def binidx_of(tokens, folder, name="data"):
    with BinidxWriter(folder / name, "uint16") as writer:
        writer.append(tokens)
    return Binidx(folder / name)
