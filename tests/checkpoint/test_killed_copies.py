"""A copy that is killed at any file operation leaves nothing torn; the next start makes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT


@pytest.mark.parametrize("kind", ["files", "folders"])
def test_a_copy_that_is_killed_anywhere_leaves_whole_states_and_is_made_again(
    tmp_path: Path, kind: str
):
    command = [sys.executable, "-m", "tests.checkpoint.copy_kill_points", str(tmp_path), kind]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    points = json.loads(ended.stdout)
    old, new = ({f"rwkv-step-{n}.state" for n in pair} for pair in ((1, 2), (2, 3)))
    # Record, log, copy, record: each opened, flushed and renamed; and one that is deleted.
    assert len(points) > 15
    for number, point in enumerate(points, 1):
        left, again = point["left"], point["again"]
        assert all(left.values()), f"torn at operation {number}: {left}"
        # One is deleted only when the new one is there.
        assert old <= set(left) or new <= set(left), (number, left)
        assert set(again) == new and all(again.values()), (number, again)
        # Only these: no leftovers, nothing set aside.
        assert set(point["files"]) == {*new, "copies.json", "metrics.jsonl"}, (number, point)
    assert {frozenset(point["left"]) for point in points} >= {frozenset(old), frozenset(old | new)}
