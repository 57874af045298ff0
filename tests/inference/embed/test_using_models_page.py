"""The Python code of docs/using_models.md runs as it stands there, and its flags exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rwkv_train.inference.embed.__main__ import embed_parser
from tests.checkout import ROOT
from tests.models.tiny import tiny_model

PAGE = (ROOT / "docs" / "using_models.md").read_text(encoding="utf-8")


def test_the_code_for_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    torch.save(tiny_model("7", vocab_size=257).state_dict(), tmp_path / "rwkv-final.pth")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "docs/using_models.md", "exec"), names)
    assert torch.allclose(names["cosines"].diagonal(), torch.ones(3))


def test_every_flag_of_the_table_exists_and_every_own_flag_is_told():
    (section,) = re.findall(r"^## Vectors for texts\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    told = set(re.findall(r"--[a-z_]+", section.split("**The same vectors")[0]))
    known = set(embed_parser()._option_string_actions)
    assert told <= known
    # Those of the machine are described with the other programs.
    assert {flag for flag in known if flag.startswith("--")} - told <= {"--wkv_backend", "--help"}
