"""docs/tutorials/wandb_uploads.md names all that this program hands to Weights & Biases."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.records import StepRecord
from rwkv_train.training.reporting.wandb_log import WandbLog
from tests.checkout import ROOT

PAGE = (ROOT / "docs" / "tutorials" / "wandb_uploads.md").read_text(encoding="utf-8")


class Recorder:
    """Stands for a run of wandb; keys: those that were logged."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def log(self, values: dict[str, Any], step: int) -> None:
        self.keys |= values.keys()


def test_every_key_of_a_step_is_named_or_is_one_of_metrics_jsonl():
    log = WandbLog.__new__(WandbLog)
    recorder = log._run = Recorder()
    fields = [field.name for field in dataclasses.fields(StepRecord)]
    groups = {"embedding": 1.0}
    values = {name: groups if name == "grad_norms" else 1 for name in fields}
    log.on_step(StepRecord(**values), Progress())
    assert len(recorder.keys) >= 6
    known = {*re.findall(r"`([\w/]+)`", PAGE), *fields}
    missing = {key for key in recorder.keys if not {key, key.partition("/")[0]} & known}
    assert not missing, f"name them in docs/tutorials/wandb_uploads.md: {missing}"


def test_nothing_but_records_is_handed_over():
    """What else may be uploaded (code, files) is asked for by these names."""
    source = (ROOT / "src/rwkv_train/training/reporting/wandb_log.py").read_text(encoding="utf-8")
    for name in ("log_code", "wandb.save", "log_artifact", "log_model", "watch("):
        assert name not in source
    assert "save_code=False" in source


@pytest.mark.parametrize("line", re.findall(r"^export (WANDB_\w+=\w+)", PAGE, re.MULTILINE))
def test_the_variables_that_hold_things_back_are_wandbs(line: str):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    name, _, value = line.partition("=")
    plain, asked = wandb.Settings(), wandb.Settings()
    asked.update_from_env_vars({name: value})
    # Of a variable that it does not know nothing changes.
    assert plain.model_dump() != asked.model_dump()
