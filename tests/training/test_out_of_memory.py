"""A run that wants for memory is refused before, or explained, and goes on with less."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from rwkv_train.errors import is_out_of_memory
from rwkv_train.models.backbone import RWKV
from rwkv_train.report.run_records import read_metrics
from tests.training.runs import start

ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 1073741824 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError(ON_CPU), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError("std::bad_alloc"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_the_want_of_memory_is_known_by_its_errors(error, is_one):
    assert is_out_of_memory(error) == is_one


def test_a_run_that_wants_for_memory_says_of_what_and_goes_on_with_less(
    run_training, tmp_path, capsys, monkeypatch
):
    options = {"micro_bsz": 8, "max_steps": 5, "ctx_len": 128, "exit_tokens": 20000}
    assert run_training(**options | {"max_steps": 3}) == 0
    assert (tmp_path / "out" / "rwkv-0.state").is_file()
    whole = RWKV.loss_and_state
    calls = []

    def fails(model, tokens, *arguments, **named):
        calls.append(tokens.shape)
        if len(calls) == 2:
            raise RuntimeError(ON_CPU)
        return whole(model, tokens, *arguments, **named)

    monkeypatch.setattr(RWKV, "loss_and_state", fails)
    capsys.readouterr()
    assert run_training(**options) == 1
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in printed
    assert "out of memory" in line and "1.1 GB more were asked for" in line
    assert re.search(r"were predicted, most of it \w+ \d", line)
    smaller = re.search(r"add (--.*?) \(", line)
    monkeypatch.undo()
    flags = smaller[1].split()
    changes = dict(zip((word.removeprefix("--") for word in flags[::2]), flags[1::2]))
    assert run_training(**options | changes) == 0
    assert [r["step"] for r in read_metrics(tmp_path / "out") if "loss" in r][-1] == 4


@pytest.mark.skipif(sys.platform != "linux", reason="limits of addresses are enforced by Linux")
def test_with_limited_addresses_a_run_is_refused_or_ends_in_words_and_resumes_smaller(tmp_path):
    ended = start("tests.training.limited_memory", str(650 << 20), str(tmp_path / "out"))
    assert ended.returncode == 0, ended.stderr
    statuses = re.findall(r"^status (\d+)$", ended.stdout, re.M)
    assert statuses == ["0", "2", "1", "0"]
    (refused,) = re.findall(r"^refused (.*)$", ended.stdout, re.M)
    assert "ulimit -v" in refused and "head 0.5 GB" in refused
    (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "out of memory" in error and "most of it head 0.5 GB" in error
    # the first before, the second after
    assert [r["step"] for r in read_metrics(tmp_path / "out") if "loss" in r] == [0, 1]
