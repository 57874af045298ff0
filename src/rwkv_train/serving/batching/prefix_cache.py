"""States behind the beginnings of texts, kept so that no beginning is read twice.

A state is found by the token ids that lead to it, all of them compared: it is the state of exactly
those tokens. The least recently used ones leave when there are too many bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rwkv_train.inference.engine.sequence_state import state_tensors
from rwkv_train.inference.writing_together import ReadSequence

_Ids = npt.NDArray[np.int32]
# A shared beginning that is shorter costs less to read than to keep.
SHORTEST_SHARED = 32
# All are compared with every prompt, while nobody is served.
_MOST_STATES = 1024


class KnownPrefix(NamedTuple):
    """The longest beginning of a prompt whose state is kept, and where to keep another one.

    length: its tokens.  sequence: the state and logits there; None: no beginning is known.
    shared: tokens that the prompt has in common with another text, when they are more than
    `length`: a third text may begin with them too, so the state there is worth keeping. 0: none.
    """

    length: int
    sequence: ReadSequence | None
    shared: int


class _Entry(NamedTuple):
    ids: _Ids
    sequence: ReadSequence
    size: int


class PrefixCache:
    """States by the tokens before them, of at most `limit_bytes` together; 0: none is kept.

    Used by one thread.  hits, misses: prompts that began with a kept state, and the others.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.size = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, prompt: Sequence[int]) -> KnownPrefix:
        """Returns the longest known beginning of a prompt; the whole prompt is one of them."""
        wanted = np.asarray(prompt, np.int32)
        best, shared = None, 0
        for key, entry in self._entries.items():
            common = _common_length(entry.ids, wanted)
            shared = max(shared, common)
            known = common == len(entry.ids)
            if known and (best is None or common > len(self._entries[best].ids)):
                best = key
        if best is None:
            self.misses += 1
            return KnownPrefix(0, None, shared if shared >= SHORTEST_SHARED else 0)
        self.hits += 1
        self._entries.move_to_end(best)
        found = self._entries[best]
        length = len(found.ids)
        return KnownPrefix(
            length, found.sequence, shared if shared >= length + SHORTEST_SHARED else 0
        )

    def keep(self, tokens: Sequence[int], sequence: ReadSequence) -> None:
        """Keeps the sequence behind `tokens`, in memory of its own."""
        ids = np.asarray(tokens, np.int32)
        key = ids.tobytes()
        if key in self._entries:
            self._entries.move_to_end(key)
            return
        tensors = [*state_tensors(sequence.state.alone()).values(), sequence.logits]
        size = 2 * ids.nbytes + sum(value.numel() * value.element_size() for value in tensors)
        if size > self._limit:
            return
        while self.size + size > self._limit or len(self._entries) == _MOST_STATES:
            _, oldest = self._entries.popitem(last=False)
            self.size -= oldest.size
        # Cut out: a row would keep the whole batch that it was computed in.
        kept = ReadSequence(sequence.state.copied(), sequence.logits.clone())
        self._entries[key] = _Entry(ids, kept, size)
        self.size += size


def _common_length(first: _Ids, second: _Ids) -> int:
    """Returns how many tokens two texts have in common at their beginnings."""
    shorter = min(len(first), len(second))
    if not shorter or first[0] != second[0]:
        return 0
    different = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(different[0]) if len(different) else shorter
