"""Tells whether a written model is the model: its numbers bit for bit, its logits by comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from rwkv_train.errors import CheckpointError
from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.reference_logits import (
    fixed_prompts,
    logits_at_once,
    logits_one_by_one,
    own_model,
    relative_error,
)
from rwkv_train.export.target import ExportOptions, ExportTarget, TargetLogits, Unavailable

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


@dataclass
class Agreement:
    """The distance of logits from ours in fp64, the worst over all prompts.

    error: the largest difference, by the largest logit.  same, tokens: at how many of how many
    positions the likeliest token is ours.
    """

    error: float = 0.0
    same: int = 0
    tokens: int = 0

    def add(self, found: Tensor, reference: Tensor) -> None:
        """Takes the logits [T, V] of one more prompt."""
        self.error = max(self.error, relative_error(found, reference))
        self.same += int((found.argmax(-1) == reference.argmax(-1)).sum())
        self.tokens += len(reference)

    def __str__(self) -> str:
        return f"{self.error:.1e}   same likeliest token at {self.same} of {self.tokens}"


@dataclass
class LogitsReport:
    """The findings of `compare_logits`; every entry is against ours in fp64.

    ours: in fp32, at once; ours_recurrent: a token at a time.  cast: of the numbers written,
    against those of the source, None where they are the same.  unavailable: why the target's
    library computed nothing.  largest: what `at_once` and `one_by_one` may be.
    """

    library: str = ""
    ours: Agreement = field(default_factory=Agreement)
    ours_recurrent: Agreement = field(default_factory=Agreement)
    at_once: Agreement | None = None
    one_by_one: Agreement | None = None
    cast: Agreement | None = None
    unavailable: str | None = None
    largest: float = 0.0

    def lines(self) -> list[str]:
        """Returns the report as it is printed."""
        rows = [
            ("ours in fp32", self.ours),
            ("ours in fp32, token by token", self.ours_recurrent),
            (f"{self.library}", self.at_once),
            (f"{self.library}, token by token", self.one_by_one),
            ("ours after the cast, against before", self.cast),
        ]
        shown = [(name, value) for name, value in rows if value is not None]
        width = max(len(name) for name, _ in shown)
        lines = [f"  {name:{width}}  {value}" for name, value in shown]
        if self.unavailable is not None:
            return [*lines, f"  not computed by the target's library: {self.unavailable}"]
        return [*lines, f"  allowed{'':{width - 5}}{self.largest:.1e}"]

    def fault(self) -> str | None:
        """Returns what is beyond the tolerance, None when nothing is."""
        for name, found in (("at once", self.at_once), ("token by token", self.one_by_one)):
            if found is not None and not found.error <= self.largest:
                return (
                    f"the logits of {self.library} {name} differ from ours by {found.error:.1e} of "
                    f"the largest logit, more than {self.largest:.1e}"
                )
        return None


def require_same_numbers(
    path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> int:
    """Returns how many tensors were expected and found with the same bits.

    Raises CheckpointError when one was not.
    """
    missing = [key for key in expected if key not in found]
    if missing:
        raise CheckpointError(f"{path} lacks {missing[0]} ({len(missing)} such tensors)")
    wrong = [key for key, value in expected.items() if not _same_bits(value, found[key])]
    if wrong:
        key = wrong[0]
        raise CheckpointError(
            f"{path}: {len(wrong)} of {len(expected)} tensors came back with other numbers, first "
            f"{key}, {_outline(expected[key])}, read as {_outline(found[key])}"
        )
    return len(expected)


def compare_logits(
    target: ExportTarget,
    path: Path,
    model: SourceModel,
    written: Mapping[str, Tensor],
    options: ExportOptions,
) -> LogitsReport:
    """Returns how near the target's logits, and ours in fp32, come to ours in fp64.

    written: what `read_back` gave, from which ours are computed too: what a cast changes is told
    apart from what the target's program makes of the numbers.
    """
    states = model.states if target.holds_states else None
    report = LogitsReport()
    prompts = fixed_prompts(model.config.vocab_size, model.tokenizer)
    exact = own_model(written, model.config, torch.float64, states)
    references = [logits_at_once(exact, tokens) for tokens in prompts]
    del exact
    single = own_model(written, model.config, torch.float32, states)
    for tokens, reference in zip(prompts, references):
        report.ours.add(logits_at_once(single, tokens), reference)
        report.ours_recurrent.add(logits_one_by_one(single, tokens), reference)
    del single
    if any(not _same_value(value, written[key]) for key, value in model.weights.items()):
        report.cast = Agreement()
        before = own_model(model.weights, model.config, torch.float64, states)
        for tokens, reference in zip(prompts, references):
            report.cast.add(reference, logits_at_once(before, tokens))
        del before
    report.largest = max(target.largest_error(model, options), 4 * report.ours.error)
    found = target.logits(path, model, prompts)
    if isinstance(found, Unavailable):
        report.unavailable = found.reason
        return report
    for logits, reference in zip(found, references, strict=True):
        _add(report, logits, reference)
    return report


def _add(report: LogitsReport, found: TargetLogits, reference: Tensor) -> None:
    report.library = found.library
    if found.at_once is not None:
        report.at_once = report.at_once or Agreement()
        report.at_once.add(found.at_once, reference)
    if found.one_by_one is not None:
        report.one_by_one = report.one_by_one or Agreement()
        report.one_by_one.add(found.one_by_one, reference)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    # As integers: -0 is not 0, and what a comparison of numbers would hide is seen.
    integers = _INTEGERS[a.element_size()]
    return torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def _same_value(a: Tensor, b: Tensor) -> bool:
    # fp32 holds every bf16 and fp16.
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.float(), b.float())


def _outline(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
