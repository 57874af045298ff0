"""A run struck again and again at random moments loses nothing (`benchmarks.kill_test`, short)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import start


@pytest.mark.slow
def test_a_run_that_is_struck_nine_times_ends_with_the_same_bits(tmp_path: Path):
    done = start(
        "benchmarks.kill_test",
        "--kills",
        "9",
        "--steps",
        "80",
        "--seed",
        "5",
        "--folder",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 interruptions of 80 steps: final weights bitwise equal" in done.stdout
