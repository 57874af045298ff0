"""The operators by themselves: what README.md and docs/operators.md show runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys

import torch

from tests.checkout import ROOT


def python_blocks(file: str, containing: str) -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if containing in block]


def test_a_network_of_ones_own_needs_torch_and_the_operator_only():
    (example,) = python_blocks("docs/operators.md", "class Mixer")
    check = (
        "\nimport sys\n"
        "loaded = {name.split('.')[1] for name in sys.modules if name.startswith('rwkv_train.')}\n"
        "assert loaded <= {'ops', 'errors', 'files', 'compiler'}, loaded\n"
        "assert not {'pytorch_lightning', 'deepspeed'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", example + check],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_readmes_lines_run_on_the_shapes_they_name():
    (example,) = python_blocks("README.md", "from rwkv_train.ops.wkv6 import wkv6")
    r, k, v, w = (torch.randn(2, 5, 3, 8) for _ in range(4))
    names = {"r": r, "k": k, "v": v, "w": w, "u": torch.randn(3, 8)}
    exec(compile(example, "README.md", "exec"), names)
    assert names["y"].shape == (2, 5, 3, 8) and names["state"].shape == (2, 3, 8, 8)
