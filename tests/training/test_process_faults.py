"""A fault of one of two processes ends both, with one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sampler import sample_offset
from tests.training.two_processes import Ended

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spoilt(corpus: Path, folder: Path) -> Path:
    """The corpus with token id 300, beyond its vocabulary of 257, in sample 14.

    With a global batch of 4, sample 1 + 3 * 4 + 1 is the second process's first one in step 3.
    """
    prefix = folder / "spoilt"
    for suffix in (".idx", ".bin"):
        shutil.copy(f"{corpus}{suffix}", f"{prefix}{suffix}")
    source = open_source(str(prefix), "binidx")
    position = sample_offset(14, magic_prime(source.tokens, 32), 32) + 7
    with Path(f"{prefix}.bin").open("r+b") as file:
        file.seek(2 * position)
        file.write((300).to_bytes(2, "little"))
    return prefix


def test_bad_data_met_by_one_process_ends_both_with_one_line(
    folder: Path, spoilt: Path, two_processes: Callable[..., Ended]
):
    run = two_processes(folder / "bad", "ddp", self_started=True, data_file=spoilt, vocab_size=257)
    assert run.status == 2
    assert "Traceback" not in run.printed, run.printed
    lines = [line for line in run.printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: rank 1 on ")
    assert "token id 300 at position 7 of sample 14" in lines[0]
    assert list(run.values("loss")) == [0, 1, 2]
    assert not list(run.folder.glob("rwkv-[0-9]*"))


def test_a_checkpoint_that_cannot_be_written_ends_both_with_one_line(
    folder: Path, two_processes: Callable[..., Ended]
):
    # A folder in the place of the first checkpoint; root may write nearly everywhere else.
    (folder / "full" / "rwkv-0.pth").mkdir(parents=True)
    run = two_processes(
        folder / "full", "deepspeed_stage_1", self_started=True, max_steps=4, save_retry_seconds=0
    )
    assert run.status == 1
    assert "Traceback" not in run.printed, run.printed
    lines = [line for line in run.printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "rwkv-0.pth" in lines[0]
    assert not list(run.folder.glob("*.partial")) and not list(run.folder.glob("*.state"))


def test_the_first_process_alone_says_that_there_is_no_compiler(two_processes, folder, tmp_path):
    nothing = {"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    ended = two_processes(
        folder / "no_compiler",
        "ddp",
        self_started=True,
        environment=nothing,
        wkv_backend="auto",
        exit_tokens=256,
    )
    assert ended.status == 0, ended.printed
    told = [line.strip() for line in ended.printed.splitlines()]
    lines = [line.strip() for line in ended.printed.splitlines()]
    told = [line for line in lines if " wkv6" in line or " norm_shift" in line]
    assert len(told) == 3, ended.printed
    assert told[0] == "operators   wkv6: chunked, cpu"
    assert told[1].startswith("operators   norm_shift, ") and told[1].endswith(": reference, cpu")
    assert told[2].startswith("note        wkv6, norm_shift, ")
    assert " run on the CPU without kernels, several times slower, because" in told[2]
    assert "no C++ compiler" in told[2]
