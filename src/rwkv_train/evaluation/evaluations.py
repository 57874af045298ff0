"""All that can be measured of a model: text, compression, choices, last words, tasks of lm-eval.

An evaluation is prepared once, which reads and checks its files, and is then taken of one model or
of two. What it finds are sections: figures by name, and for comparisons the units they are made of.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_train.data.binidx.layout import idx_path
from rwkv_train.data.binidx.manifest import manifest_path, manifest_prefix
from rwkv_train.data.text.inputs import STANDARD_INPUT, find_inputs
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import ConfigError, DataError
from rwkv_train.evaluation.documents import read_documents, read_rows
from rwkv_train.evaluation.harness import TaskRuns
from rwkv_train.evaluation.perplexity import Policy, evaluate_text
from rwkv_train.evaluation.questions import (
    evaluate_choices,
    evaluate_last_words,
    read_question,
    split_last_word,
)
from rwkv_train.evaluation.scoring import Scorer


class Units(NamedTuple):
    """The parts of a figure: sum of values / sum of weights, times a factor.

    values: one for each document or question.  weights: None: 1 each.
    """

    values: Sequence[float]
    weights: Sequence[float] | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class ResultSection:
    """Figures of one thing that was measured.

    kind: text, compression, choices, last_word or task.  name: of the file or task.
    figures: by name, as the JSON result has them.  units: of figures that can be compared.
    better: figure -> whether more of it is better.  notes: what people should know.
    """

    kind: str
    name: str
    figures: dict[str, Any]
    units: dict[str, Units] = field(default_factory=dict)
    better: dict[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Evaluation(ABC):
    """Something that can be measured of a model."""

    @abstractmethod
    def take(self, scorer: Scorer, tokenizer: Tokenizer) -> list[ResultSection]:
        """Returns what is found, in a fixed order."""


class TextEvaluation(Evaluation):
    """Perplexities and bits per byte of a text file or a binidx pair.

    Raises DataError at once where there is nothing under the name.
    """

    def __init__(self, name: str, policy: Policy, text_key: str, limit: int | None) -> None:
        _require_input(name, "--text")
        self._name, self._policy, self._text_key, self._limit = name, policy, text_key, limit

    def take(self, scorer: Scorer, tokenizer: Tokenizer) -> list[ResultSection]:
        return [self._section(scorer, tokenizer, "text")]

    def _section(self, scorer: Scorer, tokenizer: Tokenizer, kind: str) -> ResultSection:
        _require_separator(tokenizer, prefix=self._policy.prefix)
        documents, notes = read_documents(self._name, tokenizer, self._text_key, self._limit)
        figures = evaluate_text(scorer, tokenizer, documents, self._policy)
        if not figures.nats:
            raise DataError(f"{self._name} holds no document with a token to score")
        units = {
            "bits_per_byte": Units(figures.nats, figures.text_bytes, 1 / math.log(2)),
            "loss": Units(figures.nats, figures.tokens),
            "compression_percent": Units(figures.nats, figures.text_bytes, 12.5 / math.log(2)),
        }
        kept = ("compression_percent",) if kind == "compression" else ("bits_per_byte", "loss")
        units = {name: units[name] for name in kept}
        better = dict.fromkeys(units, False)
        return ResultSection(kind, self._name, figures.values(), units, better, tuple(notes))


class CompressionEvaluation(Evaluation):
    """Compression rates of new texts, a source each, and their mean.

    Chunks of so many tokens, each from the initial state with 0 in front; all tokens count. The
    rate, in %, is bits per byte * 12.5: the bits that a coder by this model would need.
    """

    def __init__(self, names: Sequence[str], window: int, text_key: str, limit: int | None) -> None:
        policy = Policy("windows", window)
        self._sources = [TextEvaluation(name, policy, text_key, limit) for name in names]

    def take(self, scorer: Scorer, tokenizer: Tokenizer) -> list[ResultSection]:
        found = [source._section(scorer, tokenizer, "compression") for source in self._sources]
        if len(found) > 1:
            rates = [section.figures["compression_percent"] for section in found]
            # Of sources, not of bytes: a large source does not outweigh the others.
            mean = {"compression_percent": sum(rates) / len(rates), "sources": len(rates)}
            better = {"compression_percent": False}
            found.append(ResultSection("compression", "mean of the sources", mean, {}, better))
        return found


class ChoicesEvaluation(Evaluation):
    """Questions with choices of a .jsonl, all of which is read and checked at once."""

    def __init__(self, name: str, limit: int | None, *, prefix: bool) -> None:
        _require_input(name, "--choices")
        self._name, self._prefix = name, prefix
        self._questions = [read_question(place, row) for place, row in read_rows(name, limit)]
        _require_some(self._questions, name)

    def take(self, scorer: Scorer, tokenizer: Tokenizer) -> list[ResultSection]:
        _require_separator(tokenizer, prefix=True)
        figures = evaluate_choices(scorer, tokenizer, self._questions, prefix=self._prefix)
        units = {name: Units(right) for name, right in figures.right.items()}
        better = dict.fromkeys(units, True)
        return [ResultSection("choices", self._name, figures.values(), units, better)]


class LastWordEvaluation(Evaluation):
    """The last words of the texts of a .jsonl, all of which is read and checked at once."""

    def __init__(self, name: str, text_key: str, limit: int | None, *, prefix: bool) -> None:
        _require_input(name, "--last_word")
        self._name, self._prefix = name, prefix
        self._texts = []
        for place, row in read_rows(name, limit):
            text = row.get(text_key)
            if not isinstance(text, str):
                raise DataError(f"{place}: '{text_key}' must be a text, found {text!r:.40}")
            self._texts.append(split_last_word(place, text))
        _require_some(self._texts, name)

    def take(self, scorer: Scorer, tokenizer: Tokenizer) -> list[ResultSection]:
        _require_separator(tokenizer, prefix=True)
        figures = evaluate_last_words(scorer, tokenizer, self._texts, prefix=self._prefix)
        units = {"acc": Units(figures.right), "log_probability": Units(figures.log_probabilities)}
        better = {"acc": True, "perplexity": False, "log_probability": True}
        return [ResultSection("last_word", self._name, figures.values(), units, better)]


class TaskEvaluation(Evaluation):
    """Tasks of lm-eval, a section each."""

    def __init__(self, runs: TaskRuns, *, prefix: bool) -> None:
        self._runs, self._prefix = runs, prefix

    def take(self, scorer: Scorer, tokenizer: Tokenizer) -> list[ResultSection]:
        found, notes = [], []
        result = self._runs.run(scorer, tokenizer, prefix=self._prefix)
        if result.moved_cuts:
            notes.append(
                f"{result.moved_cuts} of the {result.pairs} contexts of all tasks end within a "
                "token, where lm-eval would cut in another place"
            )
        for name, task in result.tasks.items():
            figures = {
                "prefix": "0" if self._prefix else "none",
                "documents": task.documents,
                **task.figures,
            }
            units = {metric: Units(values) for metric, values in task.by_document.items()}
            better = task.higher_is_better
            found.append(ResultSection("task", name, figures, units, better, tuple(notes)))
            # Once: of all tasks.
            notes = []
        return found


def _require_input(name: str, flag: str) -> None:
    """Raises DataError where nothing lies under a name."""
    prefix = manifest_prefix(name)
    if idx_path(prefix).exists() or manifest_path(prefix).exists():
        return
    if name == STANDARD_INPUT or (Path(name).exists() and not Path(name).is_file()):
        raise DataError(
            f"{flag} {name} is no file: what is evaluated may be read twice, so give files, or the "
            "prefix of a binidx pair"
        )
    try:
        find_inputs([name])
    except DataError as error:
        raise DataError(f"{flag} {error}") from error


def _require_some(rows: Sequence[object], name: str) -> None:
    if not rows:
        raise DataError(f"{name} holds no row")


def _require_separator(tokenizer: Tokenizer, *, prefix: bool) -> None:
    if prefix and tokenizer.end_of_document is None:
        raise ConfigError(
            f"the vocabulary of {tokenizer.name} has no end of a document that could stand in "
            "front of a text; evaluate by --text with --prefix none"
        )
