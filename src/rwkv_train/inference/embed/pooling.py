"""One vector for a whole text: the features of its tokens put together, or the state behind it.

    vectors = pooled_vectors(engine, [tokenizer.encode(text) for text in texts], "mean")

Features x_t are what the head reads at token t, behind the last norm: the `last_hidden_state` of
other libraries. Sums are running ones, so that memory does not grow with the length of a text.

| pooling    | vector                                                     | numbers          |
|------------|------------------------------------------------------------|------------------|
| `mean`     | (1 / T) sum of x_t                                         | C                |
| `last`     | x_T                                                        | C                |
| `weighted` | sum of t x_t / sum of t: later tokens have seen more       | C                |
| `state`    | the last block's matrices; RWKV-4: numerator / denominator | H N N; RWKV-4: A |

Texts of a batch are padded behind their ends, where nothing that counts can see it. No padding
stands in front of a text: it would be read as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.sequence_state import SequenceState, stack_states
from rwkv_train.models.state import ModelState, map_state

_PADDING = 0


class _Piece(NamedTuple):
    """Features [members, T, C] of some texts from token `start` on, those of padding among them."""

    members: list[int]
    start: int
    features: Tensor


@torch.no_grad()
def pooled_vectors(engine: Engine, texts: Sequence[Sequence[int]], pooling: str) -> Tensor:
    """Returns a vector for every text, [n, size] in fp32 on the CPU.

    A vector is the same in every company, up to rounding.
    texts: token ids, at least one each.  pooling: a row of the table above.
    """
    if pooling == "state":
        return torch.stack([_of_state(s) for s in engine.read(texts, None, lambda piece: None)])
    # A sum of a million features in fp32 would lose the last ones' digits.
    sums = torch.zeros(len(texts), engine.model.config.n_embd, dtype=torch.float64)
    totals = torch.zeros(len(texts), 1, dtype=torch.float64)
    lengths = torch.tensor([len(text) for text in texts])
    for members, start, features in _pieces(engine, texts):
        places = torch.arange(start + 1, start + features.shape[1] + 1)
        weights = _weights(pooling, places, lengths[members][:, None])
        on_device = weights.to(features.device)[:, :, None]
        # Not a product with 0: even a NaN behind the end must not matter.
        parts = torch.where(on_device > 0, features.float() * on_device, 0.0)
        sums[members] += parts.sum(1).double().cpu()
        totals[members] += weights.sum(1, keepdim=True)
    return (sums / totals).float()


def _weights(pooling: str, places: Tensor, lengths: Tensor) -> Tensor:
    """Returns the weights [members, T] of tokens at `places`, from 1; 0 behind a text's end."""
    if pooling == "last":
        return (places == lengths).float()
    assert pooling in ("mean", "weighted"), f"there is no pooling {pooling!r}"
    inside = (places <= lengths).float()
    return inside if pooling == "mean" else inside * places


def _pieces(engine: Engine, texts: Sequence[Sequence[int]]) -> Iterator[_Piece]:
    """Yields the features of all texts, piece by piece, until the longest ends."""
    active, start = list(range(len(texts))), 0
    state = stack_states([engine.start()] * len(texts))
    while active:
        longest = max(len(texts[member]) for member in active) - start
        length = min(longest, max(1, engine.piece_tokens // len(active)))
        pieces = [list(texts[member][start : start + length]) for member in active]
        rows = [piece + [_PADDING] * (length - len(piece)) for piece in pieces]
        features, state = engine.model.features(torch.tensor(rows, device=engine.device), state)
        yield _Piece(active, start, features)
        start += length
        # The state of a row that has read padding is not used again.
        going_on = [row for row, member in enumerate(active) if len(texts[member]) > start]
        active = [active[row] for row in going_on]
        state = _rows_of_state(state, going_on)


def _rows_of_state(state: ModelState, rows: list[int]) -> ModelState:
    """Returns some rows in memory of their own: views would keep a piece's activations alive."""
    index = torch.tensor(rows, dtype=torch.long, device=state[0].att_shift.device)
    return map_state(lambda tensor: tensor.index_select(0, index), state)


def _of_state(state: SequenceState) -> Tensor:
    wkv = state.alone()[-1].wkv
    if isinstance(wkv, tuple):
        numerator, denominator, _ = wkv
        wkv = numerator / denominator
    return wkv.float().flatten().cpu()
