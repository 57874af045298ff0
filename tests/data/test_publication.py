"""Killed while finished data gets its names: what can be read is the old or the new, never both."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.checkout import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("one", "shards"),
        ("shards", "one"),
        ("shards", "smaller"),
        ("shards", "equal"),
        ("smaller", "shards"),
        ("masked", "remasked"),
        ("one", "masked"),
        ("masked shards", "shards"),
    ],
)
def test_killed_before_any_file_operation_nothing_is_mixed_and_it_runs_again(old, new, tmp_path):
    command = [sys.executable, "-m", "tests.data.kill_points", str(tmp_path), old, new]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["points"]) > 15
    for point in told["points"]:
        generations = []
        for prefix, tokens in point["left"].items():
            fits = {g for g in ("old", "new") if told[g]["left"][prefix] == tokens}
            if isinstance(tokens, list):
                assert len(fits) == 1, f"{prefix} is neither the old nor the new data"
                generations += fits
            else:
                assert "make" in tokens and "\n" not in tokens, tokens
        assert len(set(generations)) <= 1, "one prefix is old and the other is new"
        of_one = [
            all(told[g]["pairs"].get(name) == tokens for name, tokens in point["pairs"].items())
            for g in ("old", "new")
        ]
        assert any(of_one), "pairs of both can be opened"
        assert point["again"] == told["new"]["again"]
    refused = [p for p in told["points"] if isinstance(p["left"]["out"], str)]
    assert refused, "no point lies between the old and the new data"
