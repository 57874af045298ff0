"""The code in docs/exports.md does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.export.model_source import read_source
from rwkv_train.export.target import ExportOptions
from rwkv_train.export.target_table import TARGETS
from rwkv_train.export.targets.package_client import package_start
from rwkv_train.export.targets.transformers_rwkv4 import TransformersFolder
from tests.checkout import ROOT
from tests.export.exported_models import source_model
from tests.models.tiny import tiny_model

PAGE = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")


def code_with(word: str) -> str:
    """Returns the one Python block of the page that holds a word."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


def test_every_target_has_a_row_with_its_formats():
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", PAGE, re.MULTILINE))
    assert rows.keys() == TARGETS.keys()
    for name, target in TARGETS.items():
        assert ", ".join(target.precisions) in rows[name]


@pytest.mark.parametrize("version", ["4", "7"])
def test_trained_states_become_the_list_that_was_compared(tmp_path: Path, version: str):
    model = tiny_model(version, options={"train_states": True})
    save_weights(tmp_path / "tuned.pth", model.state_dict(), torch.float32)
    names: dict = {}
    exec(code_with("def starting_state"), names)
    found = names["starting_state"](tmp_path / "tuned.pth")
    expected = package_start(read_source(tmp_path / "tuned.pth"))
    assert expected is not None and len(found) == len(expected) == 2 * (5 if version == "4" else 3)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_transformers_runs_as_shown(tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="transformers is not installed")
    source = source_model("4", "random", tmp_path)
    TransformersFolder().write(source, ExportOptions("fp32"), tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    exec(code_with("AutoModelForCausalLM"), {})
    assert capsys.readouterr().out.startswith("User: Hello\n\nAssistant:")
