"""Questions with choices, and the last word of a text.

    score of a choice    sum of ln p over the tokens of " " and the choice, given the question
    acc                  share of questions whose answer has the highest score, the first on a tie
    acc_norm, acc_bytes  the same for the score / characters, / UTF-8 bytes of the choice

The last word, as RWKV's author scores LAMBADA: a text is cut at its last space; context and word
(with the space) are encoded apart; perplexity is exp(-mean over texts of ln p of the word), and a
text counts as right if every token of the word is the likeliest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT, Tokenizer, utf8
from rwkv_train.errors import DataError
from rwkv_train.evaluation.continuations import encode_pair, score_continuations
from rwkv_train.evaluation.scoring import Scorer

METRICS = ("acc", "acc_norm", "acc_bytes")
_MOST_NATS = 700.0


class Question(NamedTuple):
    """A question, what may be said to it, and the index of what is right."""

    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass
class ChoiceFigures:
    """The questions that were answered rightly, by metric, in their order."""

    prefix: bool
    right: dict[str, list[bool]] = field(default_factory=lambda: {name: [] for name in METRICS})
    chances: list[float] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """Returns the figures by name, as the JSON result has them."""
        found: dict[str, Any] = {
            "prefix": "0" if self.prefix else "none",
            "questions": len(self.chances),
            "chance": _mean(self.chances),
        }
        for name, right in self.right.items():
            found |= {name: _mean(right), f"{name}_stderr": _standard_error(right)}
        return found


@dataclass
class LastWordFigures:
    """Log-probabilities of the last words, and which of them were right, in their order."""

    prefix: bool
    log_probabilities: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """Returns the figures by name, as the JSON result has them."""
        mean = _mean(self.log_probabilities)
        return {
            "prefix": "0" if self.prefix else "none",
            "texts": len(self.right),
            "perplexity": None if mean is None else math.exp(min(-mean, _MOST_NATS)),
            "acc": _mean(self.right),
            "acc_stderr": _standard_error(self.right),
        }


def read_question(place: str, row: dict[str, Any]) -> Question:
    """Returns the question of a row: question, choices, and answer, an index or one of them.

    Raises DataError, which begins with `place`.
    """
    text, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not isinstance(text, str):
        raise DataError(f"{place}: 'question' must be a text, found {text!r:.40}")
    if not isinstance(choices, list) or len(choices) < 2:
        raise DataError(f"{place}: 'choices' must be a list of two texts or more")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise DataError(f"{place}: every choice must be a text that is not empty")
    if isinstance(answer, str) and choices.count(answer) == 1:
        answer = choices.index(answer)
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise DataError(
            f"{place}: 'answer' is {answer!r:.40}; expected 0 ... {len(choices) - 1}, or one of "
            "the choices"
        )
    return Question(text, tuple(choices), answer)


def in_front(ids: Sequence[int], prefix: bool) -> list[int]:
    """Returns a context with the 0 in front that it is to have, or needs where it is empty."""
    return [END_OF_DOCUMENT, *ids] if prefix or not ids else list(ids)


def evaluate_choices(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question], *, prefix: bool
) -> ChoiceFigures:
    """Returns how questions are answered."""
    pairs = []
    for question in questions:
        for choice in question.choices:
            context, continuation = encode_pair(tokenizer, question.text, f" {choice}")
            pairs.append((in_front(context, prefix), continuation))
    scores = iter(score_continuations(scorer, pairs))
    figures = ChoiceFigures(prefix)
    for question in questions:
        own = [next(scores).log_probability for _ in question.choices]
        lengths = {
            "acc": [1] * len(own),
            "acc_norm": [len(choice) for choice in question.choices],
            "acc_bytes": [len(utf8(choice)) for choice in question.choices],
        }
        for name, size in lengths.items():
            best = max(range(len(own)), key=lambda i: own[i] / size[i])
            figures.right[name].append(best == question.answer)
        figures.chances.append(1 / len(own))
    return figures


def split_last_word(place: str, text: str) -> tuple[str, str]:
    """Returns a text up to its last space, and the rest with it; DataError where there is none."""
    context, space, word = text.rpartition(" ")
    if not space or not word:
        raise DataError(f"{place}: a text of two words or more was expected, found {text!r:.60}")
    return context, space + word


def evaluate_last_words(
    scorer: Scorer, tokenizer: Tokenizer, texts: Iterable[tuple[str, str]], *, prefix: bool
) -> LastWordFigures:
    """Returns how the last words of texts are predicted.  texts: see `split_last_word`."""
    pairs = [
        (in_front(tokenizer.encode(context), prefix), tokenizer.encode(word))
        for context, word in texts
    ]
    figures = LastWordFigures(prefix)
    for score in score_continuations(scorer, pairs):
        figures.log_probabilities.append(score.log_probability)
        figures.right.append(score.is_greedy)
    return figures


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _standard_error(right: Sequence[bool]) -> float | None:
    """Returns the standard error of a share, as lm-eval has it: over n - 1."""
    if len(right) < 2:
        return None
    share = sum(right) / len(right)
    return math.sqrt(share * (1 - share) / (len(right) - 1))
