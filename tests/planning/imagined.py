"""Resolved configurations of runs that are not started."""

from __future__ import annotations

from rwkv_train.config.load import load_config
from rwkv_train.config.resolved import ResolvedConfig
from rwkv_train.planning.planned_run import imagined_run


def imagined(line: str, *, model: str | None = None, tokens: float | None = None) -> ResolvedConfig:
    """Returns what train.py would make of these words on cards that compute in bf16."""
    given = load_config(line.split())
    return imagined_run(given, model=model, tokens=tokens, has_bf16=True)[0]
