"""A resumed run tells what is otherwise than before, or is refused; nothing is silent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from matplotlib.axes import Axes

import train
from rwkv_train.report.run_records import change_marks
from rwkv_train.training.start.run_identity import append_start, folder_run
from tests.training.start.paused_runs import Resume, line

BASE = {"max_steps": 4, "exit_tokens": 12 * 128, "epoch_steps": 4}


def test_without_a_change_it_is_an_exact_continuation(resume: Resume, texts: Path):
    status, told = resume(num_workers=1, save_every_steps=3, keep_last=5)
    assert status == 0 and "exact continuation at step 4\n" in told and "changed" not in told


def test_another_spelling_is_no_change(resume: Resume, texts: Path, tmp_path: Path):
    for ending in (".bin", ".idx"):
        shutil.copy(f"{texts / 'a'}{ending}", tmp_path / f"moved{ending}")
    status, told = resume(
        data_file=tmp_path / "moved", random_seed=0, beta1=0.9, sampling="permutation"
    )
    assert status == 0 and "exact continuation at step 4\n" in told and "changed" not in told


# Words that are told of a change which is often meant, and whether the continuation is exact.
TOLD: dict[str, tuple[dict[str, object], list[str], str]] = {
    "a lower rate": (
        {"lr_init": "5e-4"},
        ["lr_init 0.001 -> 0.0005", "the rate after step 4 is 0.0003709", "have been 0.0007096"],
        "continuation at step 4, changed",
    ),
    "a warmup": (
        {"warmup_steps": 6},
        ["warmup_steps none -> 6: the rate after step 4 is"],
        "continuation at step 4, changed",
    ),
    "a higher budget": (
        {"exit_tokens": 24 * 128},
        ["exit_tokens 1,536 -> 3,072", "24 steps", "the rate after step 4"],
        "continuation at step 4, changed",
    ),
    "a larger batch": (
        {"micro_bsz": 8, "max_steps": 3},
        [
            "micro_bsz 4 -> 8: a step reads 8 samples, and read 4",
            "step 4 becomes step 2",
            "write over rwkv-0.pth",
        ],
        "continuation at step 2, changed",
    ),
    "the batch split otherwise": (
        {"micro_bsz": 2, "accumulate_grad_batches": 2},
        ["the same batches of 4 samples, summed in another order"],
        "exact continuation at step 4 but for rounding",
    ),
    "other moments": ({"beta2": 0.9}, ["beta2 0.99 -> 0.9: the moments"], "changed as told"),
    "dropout": ({"dropout": 0.5}, ["dropout 0 -> 0.5: counts from here"], "changed as told"),
    "another precision": ({"precision": "bf16"}, ["precision fp32 -> bf16"], "changed as told"),
    "another clip": ({"grad_clip": 0.5}, ["grad_clip 1 -> 0.5"], "changed as told"),
    "fp32 files": ({"save_fp32": 1}, ["save_fp32 0 -> 1"], "exact continuation at step 4\n"),
    "another backend": (
        {"wkv_backend": "reference"},
        ["wkv_backend chunked -> reference: the same mathematics"],
        "but for rounding",
    ),
    "other mini-epochs": (
        {"epoch_steps": 6},
        ["epoch_steps 4 -> 6: files are numbered", "write over rwkv-0.pth"],
        "exact continuation at step 4\n",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_change_is_told_with_its_effect(name: str, resume: Resume):
    changes, words, start = TOLD[name]
    status, told = resume(**changes)
    assert status == 0, told
    assert "changed     since the last start:" in told and start in told, told
    assert [word for word in words if word not in told] == [], told


# Words of the refusal, and the name under which it is accepted.
REFUSED: dict[str, tuple[dict[str, object], list[str], str]] = {
    "other data": (
        {"data": "c"},
        ["is other data", "the 16 samples so far were of other data"],
        "data_file",
    ),
    "grown data": (
        {"data": "b"},
        ["has grown from", "magic_prime", "were read before"],
        "data_file",
    ),
    "another context": (
        {"ctx_len": 64, "micro_bsz": 2},
        ["ctx_len 32 -> 64", "magic_prime", "of the next 1,024 tokens were read before"],
        "ctx_len",
    ),
    "an offset": (
        {"sample_offset": 3},
        ["sample_offset 0 -> 3", "of the next 1,024 tokens were read before"],
        "sample_offset",
    ),
    "random samples": ({"sampling": "random"}, ["sampling permutation -> random"], "sampling"),
    "another norm": (
        {"head_size_divisor": 4},
        ["head_size_divisor 8 -> 4", "another group norm"],
        "head_size_divisor",
    ),
    "resets": ({"reset_at_documents": 1}, ["reset_at_documents 0 -> 1"], "reset_at_documents"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_change_of_samples_or_model_is_refused_unless_it_is_accepted(name: str, resume: Resume):
    changes, words, accepted = REFUSED[name]
    status, told = resume(**changes)
    assert status == 2, told
    assert [word for word in words if word not in told] == [], told
    assert told.rstrip().endswith(f"--accept_changes {accepted}"), told
    status, told = resume(**changes, accept_changes=accepted)
    assert status == 0 and "exact continuation" not in told, told
    assert [word for word in words if word not in told] == [], told
    # The next start compares with this one, whose state is the newest.
    status, told = resume(**{**changes, "max_steps": 6})
    assert status == 0 and "exact continuation" in told, told


# What becomes of a mixture of a and c, words of the refusal, and the names that accept it.
MIXED: dict[str, tuple[str, dict[str, object], str, str]] = {
    "its length": ("a:2..1 c:1..2", {"mix_tokens": 1280}, "mix_tokens 640 -> 1,280", "mix_tokens"),
    "its weights": ("a:2..1 c:1..3", {}, "c:1..3", "data_file"),
    "its order": ("c:1..2 a:2..1", {}, "data_file", "data_file"),
    "a part": ("a:2..1 b:1..2", {}, "is no longer read", "data_file"),
    "the context": (
        "a:2..1 c:1..2",
        {"ctx_len": 64, "micro_bsz": 2},
        "ctx_len 32 -> 64",
        "ctx_len",
    ),
    "one file": ("a:1", {"mix_tokens": None}, "is no longer read", "data_file"),
}


def test_a_mixture_changes_under_the_names_of_what_has_changed(
    texts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    def resumed(parts: str, **changes: object) -> tuple[int, str]:
        given = ",".join(f"{texts / part}" for part in parts.split())
        data = {"data_file": given.removesuffix(":1"), "mix_tokens": 640, **changes}
        words = line(tmp_path / "out", **{k: v for k, v in data.items() if v is not None})
        capfd.readouterr()
        return train.main(words), "".join(capfd.readouterr())

    assert resumed("a:2..1 c:1..2")[0] == 0
    for parts, changes, words, names in MIXED.values():
        status, told = resumed(parts, max_steps=5, **changes)
        assert status == 2 and words in told, told
        assert told.rstrip().endswith(f"--accept_changes {names}"), told
    told = resumed("a:2..1 c:1..2", mix_tokens=1280, max_steps=5, accept_changes="mix_tokens")[1]
    assert "changed as told below" in told and "mix_tokens 640 -> 1,280" in told


def test_accepting_what_has_not_changed_is_said(resume: Resume):
    status, told = resume(accept_changes="ctx_len")
    assert status == 0 and "accept_changes ctx_len is not used: it has not changed" in told


def test_changes_are_kept_for_the_plot_until_the_run_goes_back(tmp_path: Path):
    for tokens, labels in [(0, []), (100, ["lr_init 1"]), (300, ["batch 8"]), (200, ["a", "b"])]:
        append_start(tmp_path, {"run": "x", "tokens": tokens, "labels": labels})
    (tmp_path / "starts.jsonl").open("a").write('{"run": "torn')
    assert change_marks(tmp_path) == [(100, "lr_init 1"), (200, "a, b")]
    assert folder_run(tmp_path) == "x" and change_marks(tmp_path / "missing") == []


def test_loss_png_marks_a_change(resume: Resume, monkeypatch: pytest.MonkeyPatch):
    marked = []
    monkeypatch.setattr(Axes, "axvline", lambda axes, place, **options: marked.append(place))
    status, told = resume(plot=1, lr_init="5e-4")
    assert status == 0 and set(marked) == {512}, told
