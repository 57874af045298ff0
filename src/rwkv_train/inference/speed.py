"""Tokens a second of reading prompts and of writing texts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class _Work:
    tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return f"{self.tokens} tokens in {self.seconds:.2f} s, {rate:.1f} tokens/s"


@dataclass
class SpeedMeter:
    """Counts the tokens and the seconds of prefill and of decoding, of all sequences together."""

    prefill: _Work = field(default_factory=_Work)
    decode: _Work = field(default_factory=_Work)

    @contextmanager
    def timing(self, work: _Work) -> Iterator[None]:
        """Adds the seconds of the block to `work`; the block ends with numbers on the CPU."""
        start = time.perf_counter()
        try:
            yield
        finally:
            work.seconds += time.perf_counter() - start

    def __str__(self) -> str:
        return f"speed: prefill {self.prefill}; decode {self.decode}"
