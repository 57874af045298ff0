"""A model's predictions of documents: perplexities, bits per byte, loss by position.

    loss                 sum of -ln p over the scored tokens / their number
    token perplexity     exp(loss): depends on the vocabulary
    word perplexity      exp(sum of -ln p / words)
    byte perplexity      exp(sum of -ln p / bytes)
    bits per byte        sum of -ln p / (bytes ln 2)
    compression, in %    bits per byte / 8 * 100

All sums run over all documents before they are divided. Which tokens a model sees before the one
that is scored is a policy, which stands next to every figure:

    document   every document from the initial state, over its whole length
    windows    windows of L tokens, each from the initial state, s further on each time; of a window
               the tokens that were not scored before count. s = L: disjoint windows
    stream     documents one after another with 0 between, one state throughout

The prefix is what stands before a document or window: 0, which ends every document in the training
data, or nothing. Without it the first token of a document has nothing before it: it is not scored,
and its bytes do not count; the first token of a later disjoint window follows the last of the
window before. The 0 behind a document is never scored and has no bytes.

Definitions of words and bytes: lm-eval's rolling log-likelihood. Windows: "perplexity of
fixed-length models" of Hugging Face.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, Tokenizer
from rwkv_train.errors import ConfigError
from rwkv_train.evaluation.documents import EncodedDocument
from rwkv_train.evaluation.scoring import ScoredRow, Scorer, TokenScores
from rwkv_train.models.state import ModelState

PolicyName = Literal["document", "windows", "stream"]
# Documents are sorted by length among so many, so that similar ones are read together.
_TOGETHER = 512
# Beyond it exp overflows.
_MOST_NATS = 700.0


@dataclass(frozen=True)
class Policy:
    """Tokens that are seen before a scored one; see the head of this file.

    window, stride: tokens, of windows.  prefix: whether 0 stands in front.
    Raises ConfigError for windows without a length, and for lengths without windows.
    """

    name: PolicyName = "document"
    window: int | None = None
    stride: int | None = None
    prefix: bool = True

    def __post_init__(self) -> None:
        window, stride = self.window, self.stride
        if self.name != "windows":
            for flag, value in (("window", window), ("stride", stride)):
                if value is not None:
                    raise ConfigError(
                        f"--{flag} {value} belongs to --policy windows, but --policy is {self.name}"
                    )
        elif window is None or window < 1:
            raise ConfigError("--policy windows needs --window L, tokens a window, at least 1")
        elif stride is not None and not 1 <= stride <= window:
            raise ConfigError(
                f"--stride {stride} must be from 1 to --window {window}: a longer one would leave "
                "tokens out"
            )

    @property
    def step(self) -> int:
        """The tokens from a window's start to the next one's."""
        assert self.window is not None, "of windows"
        return self.stride or self.window

    def values(self) -> dict[str, Any]:
        """Returns what a result says of it."""
        found: dict[str, Any] = {"name": self.name}
        if self.name == "windows":
            found |= {"window": self.window, "stride": self.step}
        return found


class _Part(NamedTuple):
    """Scored tokens of a document.  seen: tokens of the text that stood before the first one."""

    scores: TokenScores
    seen: int


@dataclass
class TextFigures:
    """Sums over documents, and each one's own for paired comparisons; nats are -ln p."""

    policy: Policy
    nats: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    words: int = 0
    empty: int = 0
    position_nats: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(64))
    position_tokens: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(64, np.int64))

    def add(self, document: EncodedDocument, parts: Sequence[_Part], tokenizer: Tokenizer) -> None:
        """Adds a document's scores."""
        scored = sum(len(part.scores.log_probabilities) for part in parts)
        # Without a prefix the first token is not.
        skipped = tokenizer.decode_bytes(document.ids[: len(document.ids) - scored])
        self.nats.append(-float(sum(part.scores.log_probabilities.sum() for part in parts)))
        self.tokens.append(scored)
        self.text_bytes.append(document.text_bytes - len(skipped))
        self.words += document.words
        for part in parts:
            values = part.scores.log_probabilities
            # Bucket 0 has the first token, k those that stand behind 2^(k-1) ... 2^k - 1 others.
            _, bits = np.frexp(part.seen + np.arange(len(values)))
            self.position_nats -= np.bincount(bits, values, minlength=64)
            self.position_tokens += np.bincount(bits, minlength=64)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text; NaN where no byte was scored."""
        size = sum(self.text_bytes)
        return math.fsum(self.nats) / size / math.log(2) if size else math.nan

    def values(self) -> dict[str, Any]:
        """Returns the figures by name, as the JSON result has them."""
        nats, tokens, size = math.fsum(self.nats), sum(self.tokens), sum(self.text_bytes)
        return {
            "policy": self.policy.values(),
            "prefix": "0" if self.policy.prefix else "none",
            "documents": len(self.nats),
            "empty_documents": self.empty,
            "tokens": tokens,
            "words": self.words,
            "bytes": size,
            "loss": nats / tokens if tokens else None,
            "token_perplexity": _exp(nats, tokens),
            "word_perplexity": _exp(nats, self.words),
            "byte_perplexity": _exp(nats, size),
            "bits_per_byte": self.bits_per_byte if size else None,
            "compression_percent": self.bits_per_byte * 12.5 if size else None,
            "by_position": [
                {"from": (1 << k) >> 1, "to": 1 << k, "tokens": int(n), "loss": float(loss / n)}
                for k, (loss, n) in enumerate(zip(self.position_nats, self.position_tokens))
                if n
            ],
        }


def evaluate_text(
    scorer: Scorer, tokenizer: Tokenizer, documents: Iterable[EncodedDocument], policy: Policy
) -> TextFigures:
    """Returns the figures of documents; those without a token to score are counted and skipped."""
    figures = TextFigures(policy)
    scored = _stream_parts if policy.name == "stream" else _window_parts
    for document, parts in scored(scorer, _usable(documents, policy, figures), policy):
        figures.add(document, parts, tokenizer)
    return figures


def _usable(
    documents: Iterable[EncodedDocument], policy: Policy, figures: TextFigures
) -> Iterator[EncodedDocument]:
    for document in documents:
        if len(document.ids) + policy.prefix > 1:
            yield document
        else:
            figures.empty += 1


def _window_parts(
    scorer: Scorer, documents: Iterable[EncodedDocument], policy: Policy
) -> Iterator[tuple[EncodedDocument, list[_Part]]]:
    for group in _groups(documents):
        rows = [document_rows(document.ids, policy) for document in group]
        scores = iter(scorer.score([row for own in rows for row in own]))
        for document, own in zip(group, rows):
            yield document, [_Part(next(scores), _seen(row, policy)) for row in own]


def document_rows(ids: Sequence[int], policy: Policy) -> list[ScoredRow]:
    """Returns what is read and scored of a document under a policy other than a stream."""
    window, step = len(ids), len(ids)
    if policy.name == "windows":
        assert policy.window is not None, "a policy of windows has their length"
        window, step = policy.window, policy.step
    rows: list[ScoredRow] = []
    start, scored = 0, 0 if policy.prefix else 1
    while scored < len(ids):
        end = min(start + window, len(ids))
        if end > scored:
            before = [END_OF_DOCUMENT, *ids[start : end - 1]]
            rows.append(
                ScoredRow(
                    before if policy.prefix else ids[min(start, scored - 1) : end - 1],
                    ids[scored:end],
                )
            )
            scored = end
        start += step
    return rows


def _stream_parts(
    scorer: Scorer, documents: Iterable[EncodedDocument], policy: Policy
) -> Iterator[tuple[EncodedDocument, list[_Part]]]:
    state: ModelState | None = None
    # The last token of the document before, which has not been read yet, and the 0 behind it.
    pending = [END_OF_DOCUMENT] if policy.prefix else []
    for document in documents:
        ids = document.ids
        targets = ids if pending else ids[1:]
        tokens = [*pending, *ids[:-1]]
        row = ScoredRow(tokens, targets)
        (scores,), state = scorer.score_batch([row], state)
        yield document, [_Part(scores, len(ids) - len(targets))]
        pending = [ids[-1], END_OF_DOCUMENT]


def _seen(row: ScoredRow, policy: Policy) -> int:
    return len(row.tokens) - len(row.targets) + (0 if policy.prefix else 1)


def _groups(documents: Iterable[EncodedDocument]) -> Iterator[list[EncodedDocument]]:
    group: list[EncodedDocument] = []
    for document in documents:
        group.append(document)
        if len(group) == _TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _exp(nats: float, count: int) -> float | None:
    return math.exp(min(nats / count, _MOST_NATS)) if count else None
