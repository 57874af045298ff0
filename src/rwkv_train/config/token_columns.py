"""The tokens of a sample that each of the processes holds that share it; pure arithmetic.

Without `chunk_len` a rank holds one piece. With it a row is read in superchunks of ranks times
chunk_len tokens, of which every rank holds chunk_len in a row: all ranks work at once on a
superchunk, and go on to the next one together.
"""

from __future__ import annotations

from collections.abc import Iterator


def token_columns(
    length: int, ranks: int, rank: int, chunk_len: int | None
) -> tuple[tuple[int, int], ...]:
    """Returns (begin, end) of the pieces of a row of `length` tokens that `rank` of `ranks` holds.

    Pieces differ by one token at most where a superchunk does not divide evenly.
    """
    return tuple(
        (first + tokens * rank // ranks, first + tokens * (rank + 1) // ranks)
        for first, tokens in _superchunks(length, ranks, chunk_len)
    )


def shortest_superchunk(length: int, ranks: int, chunk_len: int | None) -> int:
    """Returns the tokens of the shortest superchunk of a row, of which every rank needs one."""
    return min(tokens for _, tokens in _superchunks(length, ranks, chunk_len))


def most_tokens(length: int, ranks: int, chunk_len: int | None) -> int:
    """Returns the tokens of a row of `length` that the rank with the most of them holds."""
    return sum(-(-tokens // ranks) for _, tokens in _superchunks(length, ranks, chunk_len))


def _superchunks(length: int, ranks: int, chunk_len: int | None) -> Iterator[tuple[int, int]]:
    """Yields (first token, tokens) of every superchunk."""
    step = length if chunk_len is None else ranks * chunk_len
    for first in range(0, length, step):
        yield first, min(step, length - first)
