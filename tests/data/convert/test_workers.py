"""Workers: results in order, bounded, faults passed on, and the same bytes from any number."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import count

import pytest

from rwkv_train.data.convert import workers
from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.convert.select import Arrangement
from rwkv_train.data.convert.workers import map_in_order
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.errors import DataError
from tests.checkout import ROOT
from tests.data.corpora import write_random_jsonl


def slow_when_even(value):
    if value % 2 == 0:
        time.sleep(0.02)
    return value * 10


def fail_at_five(value):
    if value == 5:
        raise DataError("five")
    return value


def die_at_three(value):
    if value == 3:
        os._exit(9)
    return value


@pytest.mark.parametrize("number", [1, 3])
def test_results_come_in_the_order_of_the_values(number):
    assert list(map_in_order(slow_when_even, range(20), number)) == [10 * i for i in range(20)]


def test_no_more_values_are_taken_than_are_in_flight():
    taken = count()
    results = map_in_order(slow_when_even, taken, 2)
    assert [next(results) for _ in range(5)] == [0, 10, 20, 30, 40]
    results.close()
    assert next(taken) <= 5 + 2 * workers.IN_FLIGHT


def test_a_fault_in_a_worker_is_raised_here_in_its_turn():
    results = map_in_order(fail_at_five, range(9), 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"^five$"):
        next(results)


def test_a_worker_that_dies_is_reported():
    with pytest.raises(DataError, match=r"worker process died.*fewer --workers"):
        list(map_in_order(die_at_three, range(9), 2))


def test_any_number_of_workers_writes_the_same_bytes(tmp_path):
    path = write_random_jsonl(tmp_path / "in.jsonl", megabytes=1.1)
    arrangement = Arrangement(repeats=2, validation=0.1, dedup=True, min_tokens=3)
    content = {}
    for number in (1, 2, 4):
        prefix = tmp_path / f"w{number}" / "out"
        options = ConvertOptions([str(path)], str(prefix), arrangement, workers=number)
        made = convert(options)
        assert made.filtered_out.duplicates > 0
        content[number] = {p.name: p.read_bytes() for p in sorted(prefix.parent.iterdir())}
    assert len(content[1]) == 6
    assert content[1] == content[2] == content[4]


def test_the_earliest_fault_is_reported_whatever_the_workers(tmp_path):
    path = write_random_jsonl(tmp_path / "in.jsonl", megabytes=1.1)
    lines = path.read_bytes().splitlines(keepends=True)
    for number in (len(lines) - 2, len(lines) // 2):
        lines[number] = b"broken\n"
    path.write_bytes(b"".join(lines))
    for workers_ in (1, 2):
        with pytest.raises(DataError, match=rf"in\.jsonl, line {len(lines) // 2 + 1}: not JSON"):
            convert(ConvertOptions([str(path)], str(tmp_path / "out"), workers=workers_))
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_killed_at_random_moments_it_leaves_no_readable_data_and_runs_again(tmp_path):
    write_random_jsonl(tmp_path / "in.jsonl", megabytes=1.5)
    command = [sys.executable, str(ROOT / "make_data.py"), "in.jsonl", "2", "64", "--workers", "2"]
    command += ["--shard_tokens", "200000", "--output", "out/data"]
    began = time.monotonic()
    subprocess.run(
        [*command, "--output", "whole/data"], cwd=tmp_path, check=True, capture_output=True
    )
    duration = time.monotonic() - began
    moments = random.Random(5)
    for _ in range(3):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(moments.uniform(0, duration))
        process.kill()
        process.wait()
        _wait_until_group_is_gone(process.pid)
        if not list((tmp_path / "out").glob("*.manifest.json")):
            assert not list((tmp_path / "out").glob("*.idx"))
            continue
        whole = open_source(str(tmp_path / "whole/data"), "binidx")
        try:
            left = open_source(str(tmp_path / "out/data"), "binidx")
        except DataError:
            continue
        assert (left.get(0, left.tokens) == whole.get(0, whole.tokens)).all()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def _wait_until_group_is_gone(group):
    """Workers of a killed program must end by themselves."""
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("workers outlived the program")


def test_a_jsonl_of_words_is_what_the_other_tests_take_it_for(tmp_path):
    path = write_random_jsonl(tmp_path / "in.jsonl", megabytes=0.1)
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert 90_000 < path.stat().st_size < 120_000
    assert len(set(texts)) < len(texts)
