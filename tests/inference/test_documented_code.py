"""The Python code of docs/generating.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.checkout import ROOT
from tests.models.tiny import tiny_model


def test_the_code_for_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "docs" / "generating.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    torch.save(tiny_model("7", vocab_size=257).state_dict(), tmp_path / "rwkv-final.pth")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "docs/generating.md", "exec"), names)
    assert names["state"].position == 17 + 2 and names["logits"].shape == (1, 257)
