"""Figures about a binidx pair, taken while streaming over it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rwkv_train.command_line import printed_status, program
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.errors import DataError

_BLOCK_TOKENS = 1 << 20


def unigram_entropy(prefix: str | Path) -> float:
    """Returns the entropy of the token frequencies in nats per token, H = -sum p ln p.

    It is the smallest mean loss of a model that knows the frequencies but no context. Takes memory
    in proportion to the largest id; raises DataError for an unusable pair or a negative id.
    """
    pair = open_source(str(prefix), "binidx")
    counts = np.zeros(0, np.int64)
    for offset in range(0, pair.tokens, _BLOCK_TOKENS):
        ids = pair.get(offset, min(_BLOCK_TOKENS, pair.tokens - offset))
        if ids.min() < 0:
            raise DataError(f"{prefix}.bin holds the negative token id {ids.min()}")
        # Grows with the largest id met: the size of the vocabulary need not be known.
        block = np.bincount(ids, minlength=counts.size)
        block[: counts.size] += counts
        counts = block
    share = counts[counts > 0] / pair.tokens
    return float(-(share * np.log(share)).sum())


@program
def main(argv: Sequence[str]) -> int:
    """Prints the token count and the unigram entropy of the pair named on the command line."""
    if len(argv) != 1:
        print("error: one argument is needed, the prefix of a .bin/.idx pair", file=sys.stderr)
        return 2
    try:
        entropy = unigram_entropy(argv[0])
        tokens = open_source(argv[0], "binidx").tokens
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{argv[0]}: {tokens:,} tokens, unigram entropy {entropy:.4f} nats per token "
        "(the loss of a model that knows only how frequent each token is)"
    )
    return printed_status()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
