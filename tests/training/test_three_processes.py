"""Three processes: a resumed run ends with the bits of one that was not interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.runs import assert_same_weights, start


@pytest.mark.slow
def test_three_processes_resume_to_the_same_bits(flags: Callable[..., list[str]], tmp_path: Path):
    def run(folder: Path, max_steps: int) -> None:
        options = {
            "proj_dir": folder,
            "max_steps": max_steps,
            "exit_tokens": 96 * 100,
            "devices": 3,
            "micro_bsz": 1,
            # The sums must be of numbers that round.
            "lr_init": "1e-2",
            "warmup_steps": 0,
            "n_embd": 64,
        }
        ended = start("train.py", *flags(**options), ranks=3)
        assert ended.returncode == 0, ended.stderr

    run(tmp_path / "whole", 8)
    for steps in (3, 8):
        run(tmp_path / "parts", steps)
    assert_same_weights(tmp_path / "whole" / "rwkv-1.pth", tmp_path / "parts" / "rwkv-1.pth")
