"""Records of what a model was asked while it trained; their fields are keys of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskRecord:
    """Figures of tasks after optimizer step `step`, from 0: task -> metric -> value."""

    step: int
    tasks: Mapping[str, Mapping[str, float]]

    def values(self) -> dict[str, Any]:
        """Returns the record of metrics.jsonl."""
        figures = {name: dict(found) for name, found in self.tasks.items()}
        return {"step": self.step, "eval": figures}


@dataclass(frozen=True)
class WrittenSample:
    """A prompt and what the model has written behind it."""

    prompt: str
    text: str


@dataclass(frozen=True)
class SampleRecord:
    """Texts that were written after optimizer step `step`, from 0.

    logit_difference: between parallel and recurrent logits of the first text, relative.
    logit_limit: what rounding explains of it.
    """

    step: int
    samples: tuple[WrittenSample, ...]
    logit_difference: float
    logit_limit: float

    @property
    def agrees(self) -> bool:
        """True when rounding explains the difference of the logits; not if one is no number."""
        return self.logit_difference <= self.logit_limit

    def values(self) -> dict[str, Any]:
        """Returns the record of metrics.jsonl."""
        return {
            "step": self.step,
            "samples": [{"prompt": s.prompt, "text": s.text} for s in self.samples],
            "logit_difference": self.logit_difference,
        }
