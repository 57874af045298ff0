"""Samples read in chunks and in windows: the same run in less memory, states carried on."""

from __future__ import annotations

import json
import math
import random
import signal
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from make_data import main as make_data
from rwkv_train.checkpoint.resume import load_state, save_state
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.training.runs import assert_same_weights, loss_steps, losses, start

# Rows of 32 tokens in 4 steps of two chunks each.
WINDOWS = {"chunk_len": 4, "bptt_chunks": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are added in the same order in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_chunks_change_neither_losses_nor_validation(
    run_training: Callable[..., int],
    tmp_path: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
):
    options = {"val_data_file": f"{corpus}_val", "val_samples": 5, "weight_decay": 0.1}
    plain, chunked = tmp_path / "plain", tmp_path / "chunked"
    assert run_training(proj_dir=plain, **options) == 0
    capsys.readouterr()
    assert run_training(proj_dir=chunked, chunk_len=5, **options) == 0
    assert "32 tokens in 7 chunks of 5" in capsys.readouterr().out
    found, expected = read_metrics(chunked), read_metrics(plain)
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.keys() == other.keys()
        for key in one.keys() - {"tokens_per_second", "loop_share"}:
            assert one[key] == pytest.approx(other[key], rel=2e-4), (one["step"], key)


def test_a_window_of_the_whole_row_is_exact_training(
    run_training: Callable[..., int], tmp_path: Path
):
    for name, extra in (("exact", {}), ("one-window", {"bptt_chunks": 8})):
        assert run_training(proj_dir=tmp_path / name, chunk_len=4, **extra) == 0
    assert_same_weights(tmp_path / "exact/rwkv-final.pth", tmp_path / "one-window/rwkv-final.pth")


@pytest.mark.parametrize("version", ["4", "5", "6", "7"])
def test_windows_with_carried_states_are_the_whole_row(
    run_training: Callable[..., int], tmp_path: Path, version: str
):
    # fresh weights make no use of the state
    shape = {"rwkv_version": version, "head_size": None if version == "4" else 32}
    assert run_training(proj_dir=tmp_path / "base", lr_init=1e-2, lr_final=1e-2, **shape) == 0
    # A rate that changes nothing: what the windows of a row lose is what the row loses.
    options = {
        **shape,
        "load_model": tmp_path / "base/rwkv-final.pth",
        "lr_init": 1e-30,
        "lr_final": 1e-30,
        "exit_tokens": 3 * 128,
    }
    assert run_training(proj_dir=tmp_path / "rows", **options) == 0
    assert run_training(proj_dir=tmp_path / "windows", **WINDOWS, **options) == 0
    rows, windows = losses(tmp_path / "rows"), losses(tmp_path / "windows")
    assert (len(rows), len(windows)) == (3, 12)
    for row, loss in rows.items():
        parts = [windows[4 * row + i] for i in range(4)]
        assert statistics.fmean(parts) == pytest.approx(loss, rel=1e-5)
    assert [r["tokens"] for r in read_metrics(tmp_path / "windows")] == list(range(32, 385, 32))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run in windows; filled by the first test that needs it."""
    return tmp_path_factory.mktemp("windows") / "whole"


# 22 steps of 32 tokens, mini-epochs of 5: saved at steps 5, 10, 15, 20, mostly inside rows
RUN = {"exit_tokens": 700, "dropout": 0.1, "weight_decay": 0.1, **WINDOWS}


@pytest.mark.parametrize("pauses", [(6,), (5, 7, 19)])
def test_a_run_that_pauses_inside_rows_ends_with_the_same_weights(
    run_training: Callable[..., int], tmp_path: Path, whole: Path, pauses: tuple[int, ...]
):
    if not whole.exists():
        assert run_training(proj_dir=whole, **RUN) == 0
    for pause in pauses:
        assert run_training(max_steps=pause, **RUN) == 0
    # paused again where it is: the state it was given is written once more
    assert run_training(max_steps=pauses[-1] + 1, **RUN) == 0
    assert run_training(**RUN) == 0
    out = tmp_path / "out"
    assert_same_weights(out / "rwkv-final.pth", whole / "rwkv-final.pth")
    assert loss_steps(out) == list(range(22))
    assert losses(out) == losses(whole)


@pytest.mark.slow
def test_a_run_killed_inside_rows_goes_on_to_the_same_weights(
    run_training: Callable[..., int], flags: Callable[..., list[str]], tmp_path: Path, whole: Path
):
    if not whole.exists():
        assert run_training(proj_dir=whole, **RUN) == 0
    killed = start("tests.training.kill_at", "step:12", "KILL", *flags(num_workers=2, **RUN))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert run_training(**RUN) == 0
    assert_same_weights(tmp_path / "out/rwkv-final.pth", whole / "rwkv-final.pth")


def test_a_training_state_holds_the_states_of_the_samples_it_is_in(
    run_training: Callable[..., int], tmp_path: Path
):
    assert run_training(max_steps=6, **RUN) == 0
    carried = load_state(tmp_path / "out/rwkv-1.state")["carried"]
    # step 6 has read the second of four windows of samples 5 to 8
    assert (carried["position"], sorted(carried["states"])) == (16, [5, 6, 7, 8])
    assert [tuple(part.shape) for part in carried["states"][7][0]] == [(32,), (1, 32, 32), (32,)]
    assert run_training(max_steps=8, **RUN) == 0
    assert load_state(tmp_path / "out/rwkv-1.state")["carried"] == {"position": 0, "states": {}}


def test_micro_batches_may_change_inside_rows(run_training: Callable[..., int], tmp_path: Path):
    options = {"exit_tokens": 700, **WINDOWS}
    assert run_training(proj_dir=tmp_path / "whole", **options) == 0
    assert run_training(max_steps=6, micro_bsz=2, accumulate_grad_batches=2, **options) == 0
    assert run_training(max_steps=9, micro_bsz=1, accumulate_grad_batches=4, **options) == 0
    assert run_training(**options) == 0
    found, expected = losses(tmp_path / "out"), losses(tmp_path / "whole")
    assert list(found) == list(range(22))
    assert found == pytest.approx(expected, rel=1e-4)


def test_other_windows_go_on_inside_rows_and_other_batches_after_them(
    run_training: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = {**RUN, "epoch_steps": 100}
    assert run_training(max_steps=6, **options) == 0
    # 16 tokens of samples 5 to 8 are read: one window of 16; one more ends them, one begins 9 to 12
    assert run_training(max_steps=5, **{**options, "bptt_chunks": 4}) == 0
    assert "step 6 becomes step 3, the same place in the data" in capsys.readouterr().out
    # 12 samples in batches of 2 are 6 groups of 4 windows
    assert run_training(**{**options, "micro_bsz": 2}) == 0
    assert "step 5 becomes step 24, after the samples it was in" in capsys.readouterr().out


def test_a_training_state_without_its_carried_states_is_refused(
    run_training: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run_training(max_steps=6, **RUN) == 0
    path = tmp_path / "out/rwkv-1.state"
    state = load_state(path)
    del state["carried"]["states"][7]
    save_state(path, state)
    before = path.read_bytes()
    assert run_training(**RUN) == 2
    assert "lacks the carried state of sample 7" in capsys.readouterr().err
    assert path.read_bytes() == before


def write_riddles(folder: Path) -> Path:
    """Rows of 16 bytes: a letter, asked for once in the first half and once in the second.

    The second half alone does not tell which of four letters it was.
    """
    source = folder / "riddles.jsonl"
    letters = list("ABCD" * 300)
    random.Random(5).shuffle(letters)
    rows = [f"{letter}..?{letter}.....?{letter}..." for letter in letters]
    source.write_text("\n".join(json.dumps({"text": row}) for row in rows), encoding="utf-8")
    prefix = folder / "riddles"
    assert not make_data([str(source), "1", "16", "--output", str(prefix), "--tokenizer", "bytes"])
    return prefix


def test_a_model_uses_the_state_that_is_carried_over_a_border(
    run_training: Callable[..., int], tmp_path: Path
):
    options = {
        "data_file": write_riddles(tmp_path),
        "exit_tokens": 400 * 8 * 16,
        "micro_bsz": 16,
        "lr_init": "5e-3",
        "lr_final": "1e-3",
        "epoch_steps": 400,
        "wkv_backend": "auto",
    }
    assert (
        run_training(
            proj_dir=tmp_path / "carried", ctx_len=16, chunk_len=8, bptt_chunks=1, **options
        )
        == 0
    )
    assert run_training(proj_dir=tmp_path / "apart", ctx_len=8, **options) == 0
    carried, apart = (list(losses(tmp_path / name).values())[-40:] for name in ("carried", "apart"))
    # In the second half the last target, the next row's letter, is a guess among four for both;
    # the answer is one only where the letter is not remembered.
    guess = math.log(4) / 8
    assert statistics.fmean(carried[1::2]) < 1.3 * guess
    assert statistics.fmean(carried[::2]) < 0.3 * guess
    # two guesses in every second sample
    assert statistics.fmean(apart) > 0.95 * guess
