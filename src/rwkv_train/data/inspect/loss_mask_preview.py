"""Shows which part of some data is supervised: counts, and documents with that part marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rwkv_train.data.binidx.loss_mask import LossMask
from rwkv_train.data.binidx.manifest import Manifest
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, Tokenizer

# Of a longer stretch only its beginning and its end are shown; of a document so many stretches.
_SHOWN_TOKENS = 60
_SHOWN_CHARACTERS = 80
_SHOWN_STRETCHES = 6
_SHOWN_DOCUMENTS = 3


def supervised_line(manifest: Manifest) -> str:
    """Returns a line with the share of the tokens that are supervised."""
    if manifest.supervised_tokens is None or not manifest.tokens:
        return "loss mask: there is one"
    share = manifest.supervised_tokens / manifest.tokens
    counts = f"{manifest.supervised_tokens} of {manifest.tokens} tokens are learnt ({share:.1%})"
    return f"loss mask: {counts}"


def marked_examples(pairs: Sequence[Binidx], tokenizer: Tokenizer) -> list[str]:
    """Shows the first, a middle and the last document, supervised text in [[ ]]."""
    # A dict, so that data of one or two documents shows none of them twice.
    places = {}
    for share in np.linspace(0, 1, _SHOWN_DOCUMENTS):
        pair = pairs[round(share * (len(pairs) - 1))]
        number = round(share * (pair.item_count - 1))
        places[pair.prefix, number] = pair
    lines = ["examples, [[what is learnt]], <0>: end of document:"]
    for (prefix, number), pair in places.items():
        ids = pair.item(number)
        offset = int(pair.pointers[number]) // pair.dtype.itemsize
        weights = LossMask([(prefix, pair.tokens)]).get(offset, len(ids))
        text = marked(ids, weights, tokenizer)
        lines.append(f"  document {number} of {prefix} ({len(ids)} tokens): {text}")
    return lines


def marked(
    ids: npt.NDArray[np.integer], weights: npt.NDArray[np.uint8], tokenizer: Tokenizer
) -> str:
    """Returns the document on one line, supervised text in [[ ]], with its weight if not 1."""
    stretches = list(_stretches(weights))
    parts = []
    for start, end in stretches[:_SHOWN_STRETCHES]:
        text = _shortened(ids[start:end], tokenizer)
        weight = int(weights[start])
        label = f"{weight}:" if weight > 1 else ""
        parts.append(f"[[{label}{text}]]" if weight else text)
    more = " ..." if len(stretches) > _SHOWN_STRETCHES else ""
    return "".join(parts) + more


def _stretches(weights: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Yields start and end of the stretches of equal weight."""
    cuts = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist(), len(weights)]
    yield from pairwise(cuts)


def _shortened(ids: npt.NDArray[np.integer], tokenizer: Tokenizer) -> str:
    if len(ids) <= _SHOWN_TOKENS:
        begin = end = _visible(ids, tokenizer)
        if len(begin) <= _SHOWN_CHARACTERS:
            return begin
    else:
        half = _SHOWN_TOKENS // 2
        begin, end = _visible(ids[:half], tokenizer), _visible(ids[-half:], tokenizer)
    half = _SHOWN_CHARACTERS // 2
    return f"{begin[:half]} ... {end[-half:]}"


def _visible(ids: npt.NDArray[np.integer], tokenizer: Tokenizer) -> str:
    """Returns the text with its newlines written out."""
    text = repr(tokenizer.decode(ids.tolist()))[1:-1].replace("\\'", "'")
    # Where 0 is a token like any other, the text shows it.
    ends = 0 if tokenizer.end_of_document is None else int((ids == END_OF_DOCUMENT).sum())
    return text + ("<0>" * ends if ends <= 3 else f"<0> x {ends}")
