"""A result for people: a table of each section, of one model or of two side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rwkv_train.evaluation.comparison import FEW_UNITS, PairedDifference, paired_difference
from rwkv_train.evaluation.evaluations import ResultSection

# Figures in the order in which they are shown, and how; those not listed come behind, as they are.
_NAMES = {
    "bits_per_byte": "bits per byte",
    "compression_percent": "compression, %",
    "loss": "loss a token",
    "token_perplexity": "perplexity a token",
    "word_perplexity": "perplexity a word",
    "byte_perplexity": "perplexity a byte",
}
# Of which the head of a section tells.
_COUNTS = ("documents", "empty_documents", "questions", "texts", "tokens", "words", "bytes")
_IN_HEAD = (*_COUNTS, "policy", "prefix", "by_position", "sources")


def paired_differences(first: ResultSection, second: ResultSection) -> dict[str, PairedDifference]:
    """Returns how far the second model's figures are from the first's, with intervals.

    Of figures that both have for the same documents or questions: two tokenizers cut a text into
    tokens of their own, so that their losses a token cannot be paired.
    """
    found = {}
    for name, one in first.units.items():
        other = second.units.get(name)
        if other is None or len(one.values) != len(other.values) or one.weights != other.weights:
            continue
        weights = [1.0] * len(one.values) if one.weights is None else one.weights
        scaled = [weight / one.factor for weight in weights]
        found[name] = paired_difference(one.values, other.values, scaled)
    return found


def section_lines(sections: Sequence[ResultSection]) -> Iterator[str]:
    """Yields the lines about one thing that was measured, of one model or of two."""
    first = sections[0]
    yield _head(first)
    for note in first.notes:
        yield f"  note: {note}"
    shown = _shown(first)
    names = [name for name in _NAMES if name in shown]
    names += [name for name in shown if name not in _NAMES and name not in _IN_HEAD]
    compared = paired_differences(*sections) if len(sections) == 2 else {}
    if len(sections) == 2:
        yield f"  {'':20}{'first':>12}{'second':>12}{'difference':>12}   95 % interval"
        names += [name for name in compared if name not in first.figures]
    for name in names:
        if name.endswith("_stderr"):
            continue
        cells = [_value(section, name) for section in sections]
        line = f"  {_NAMES.get(name, name):20}" + "".join(f"{cell:>12}" for cell in cells)
        if len(sections) == 1:
            error = first.figures.get(f"{name}_stderr")
            yield line + (f"  ± {error:.4f}" if error else "")
        else:
            yield line + _difference(compared.get(name))
    if "by_position" in shown:
        yield from _positions(sections)
    few = min((found.units for found in compared.values()), default=FEW_UNITS)
    if 1 < few < FEW_UNITS:
        yield f"  note: {few} documents are few: the true interval is wider"


def _shown(section: ResultSection) -> dict[str, Any]:
    """Returns the figures that are shown of a section."""
    if section.kind == "compression":
        kept = ("compression_percent", "bits_per_byte")
        return {name: section.figures[name] for name in kept if name in section.figures}
    return {n: v for n, v in section.figures.items() if n != "compression_percent"}


def _head(section: ResultSection) -> str:
    figures = section.figures
    counts = [_counted(figures[name], name) for name in _COUNTS if figures.get(name)]
    how = []
    if policy := figures.get("policy"):
        how.append(f"policy {policy['name']}")
        if "window" in policy:
            how[-1] += f" of {policy['window']}, {policy['stride']} apart"
    if "prefix" in figures:
        how.append(f"prefix {figures['prefix']}")
    title = f"{section.kind.replace('_', ' ')} {section.name}"
    return f"{title}: " + "; ".join(filter(None, [", ".join(counts), *how])) if counts else title


def _counted(number: int, name: str) -> str:
    """Returns such as 1 document, 2 documents."""
    word = name.replace("_", " ")
    return f"{number:,} {word[:-1] if number == 1 else word}"


def _value(section: ResultSection, name: str) -> str:
    value = section.figures.get(name)
    if value is None and name in section.units:
        units = section.units[name]
        size = len(units.values) if units.weights is None else sum(units.weights)
        value = units.factor * math.fsum(units.values) / size
    return _number(value)


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3e}"


def _difference(found: PairedDifference | None) -> str:
    if found is None:
        return ""
    text = f"{found.difference:>+12.4f}"
    if found.low is None or found.high is None:
        return text + "   none: a single document"
    clear = "" if found.is_certain else "  (holds 0)"
    return text + f"   {found.low:+.4f} ... {found.high:+.4f}{clear}"


def _positions(sections: Sequence[ResultSection]) -> Iterator[str]:
    """Yields the losses by position; the numbers of tokens are those of the first model."""
    parts = sections[0].figures.get("by_position")
    if not parts or len(parts) < 2:
        return
    yield "  loss by tokens read before (mean over so many tokens):"
    others = [{p["from"]: p["loss"] for p in s.figures["by_position"]} for s in sections[1:]]
    for part in parts:
        losses = [part["loss"], *(other.get(part["from"]) for other in others)]
        span = f"{part['from']}-{part['to']}"
        yield (
            f"    {span:18}"
            + "".join(f"{_number(x):>12}" for x in losses)
            + (f"   ({part['tokens']:,})")
        )
