"""Validation: sums by position, bits per byte, equal for any processes, and the best weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import train
from make_data import main as make_data
from rwkv_train.checkpoint.resume import load_state, save_state
from rwkv_train.config.load import load_config
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.data.binidx.manifest import manifest_path
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.held_out import hold_out
from rwkv_train.inference.loading import load_model
from rwkv_train.training.reporting.metrics_file import read_metrics
from rwkv_train.training.start.discover import discover
from rwkv_train.training.start.open_data import RunSamples, open_samples
from rwkv_train.training.start.resume_point import Fresh
from tests.training.runs import assert_same_weights, weights


def records(folder: Path) -> dict[int, dict]:
    return {r["step"]: r for r in read_metrics(folder) if "val_loss" in r}


SPLIT = {"val_split": 6, "val_ctx_len": 64, "val_samples": 2, "val_every": 2, "save_best": 1}


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps with held-out slots, longer validation samples and the best kept."""
    out = tmp_path_factory.mktemp("whole")
    assert train.main(command(corpus, out)) == 0
    return out


def command(corpus: Path, out: Path, **changes: object) -> list[str]:
    values: dict[str, object] = {
        "proj_dir": out,
        "data_file": corpus,
        "rwkv_version": 6,
        "n_layer": 2,
        "n_embd": 32,
        "head_size": 32,
        "ctx_len": 32,
        "micro_bsz": 4,
        "exit_tokens": 1500,
        "epoch_steps": 5,
        "epoch_save": 1,
        "lr_init": "2e-2",
        "lr_final": "1e-3",
        "accelerator": "cpu",
        "devices": 1,
        "precision": "fp32",
        "num_workers": 0,
        "plot": 0,
        "wkv_backend": "chunked",
        "warmup_steps": 3,
        **SPLIT,
        **changes,
    }
    return [
        word
        for key, value in values.items()
        if value is not None
        for word in (f"--{key}", str(value))
    ]


def held_out_losses(corpus: Path, checkpoint: Path) -> torch.Tensor:
    """[2, 64]: the losses of the two samples of SPLIT, each in one pass."""
    source = open_source(str(corpus), "binidx")
    held_out = hold_out(source.tokens, 32, 6, 64)
    assert held_out[:2] == (3, 2)
    model = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    losses = []
    for offset in (held_out.offset(0), held_out.offset(2)):
        tokens = torch.from_numpy(source.get(offset, 65))
        logits, _ = model(tokens[None, :-1])
        losses.append(F.cross_entropy(logits[0], tokens[1:], reduction="none"))
    return torch.stack(losses).detach()


def test_held_out_slots_are_validated_on_every_few_steps_and_at_mini_epochs(whole, corpus):
    found = records(whole)
    assert list(found) == [1, 3, 4, 5, 7, 9, 11]
    losses = held_out_losses(corpus, whole / "rwkv-final.pth")
    last = found[11]
    assert last["val_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert last["val_perplexity"] == pytest.approx(math.exp(last["val_loss"]))
    by_position = last["val_loss_by_position"]
    assert list(by_position) == ["0-1", "1-2", "2-4", "4-8", "8-16", "16-32", "32-64"]
    assert by_position["0-1"] == pytest.approx(losses[:, 0].mean().item(), rel=1e-5)
    assert by_position["32-64"] == pytest.approx(losses[:, 32:].mean().item(), rel=1e-5)


def test_rwkv_best_holds_the_weights_of_the_lowest_loss(whole, corpus):
    found = records(whole)
    best = min(found, key=lambda step: found[step]["val_loss"])
    state = load_state(whole / "rwkv-final.state")
    assert state["best_val_loss"] == found[best]["val_loss"]
    losses = held_out_losses(corpus, whole / "best.pth")
    assert losses.mean().item() == pytest.approx(found[best]["val_loss"], rel=1e-5)
    assert list(weights(whole / "best.pth")) == list(weights(whole / "rwkv-final.pth"))


def test_the_best_survives_a_resume_and_is_never_started_from(whole, corpus, tmp_path):
    out = tmp_path / "parts"
    assert train.main(command(corpus, out, max_steps=7)) == 0
    state = load_state(out / "rwkv-1.state")
    assert state["best_val_loss"] == min(r["val_loss"] for r in records(out).values())
    # A best that nothing beats again: the rest of the run must leave the file alone.
    before = (out / "best.pth").read_bytes()
    save_state(out / "rwkv-1.state", {**state, "best_val_loss": 0.1})
    assert train.main(command(corpus, out)) == 0
    assert (out / "best.pth").read_bytes() == before
    assert_same_weights(out / "rwkv-final.pth", whole / "rwkv-final.pth")
    assert records(out)[11] == records(whole)[11]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_split": 4}, ["--val_split 4", "val_split 6.0", "--proj_dir"]),
        ({"ctx_len": 64}, ["--ctx_len 64", "32"]),
        (
            {
                "val_split": None,
                "val_ctx_len": None,
                "val_every": None,
                "save_best": 0,
                "val_samples": 128,
            },
            ["--val_split None", "6.0"],
        ),
    ],
)
def test_going_on_with_other_held_out_slots_is_refused(whole, corpus, capfd, changes, words):
    assert train.main(command(corpus, whole, **{"exit_tokens": 3000, **changes})) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words), err


def test_a_folder_with_a_best_is_not_started_anew_in(whole, corpus, tmp_path, capfd):
    (tmp_path / "best.pth").write_bytes((whole / "best.pth").read_bytes())
    assert train.main(command(corpus, tmp_path, train_stage=0)) == 2
    assert "best.pth" in capfd.readouterr().err


def text_of(folder: Path, repeats: int) -> Path:
    """A byte-level pair of its own under `folder`, every document several times."""
    folder.mkdir(exist_ok=True)
    source = folder / "text.jsonl"
    source.write_text(
        "".join(
            json.dumps({"text": f"number {i}, \N{GREEK SMALL LETTER PI}"}) + "\n" for i in range(60)
        ),
        encoding="utf-8",
    )
    assert not make_data(
        [str(source), str(repeats), "32", "--output", str(folder / "text"), "--tokenizer", "bytes"]
    )
    return folder / "text"


def opened(prefix: Path, *flags: str) -> RunSamples:
    config = load_config(
        [
            "--data_file",
            str(prefix),
            "--ctx_len",
            "32",
            "--vocab_size",
            "257",
            "--accelerator",
            "cpu",
            *flags,
        ]
    )
    discovered, opened = discover(config, Fresh())
    config, _ = resolve(config, discovered)
    return open_samples(config, opened)


def test_documents_that_come_again_are_warned_of(tmp_path):
    for repeats in (1, 3):
        samples = opened(text_of(tmp_path / str(repeats), repeats), "--val_split", "2")
        found = [note for note in samples.notes if "3 times" in note and "--validation" in note]
        assert len(found) == (repeats == 3), samples.notes


def test_bytes_per_token_are_counted_where_no_manifest_tells_them(tmp_path):
    prefix = text_of(tmp_path, 1)
    (told,) = opened(prefix, "--val_split", "4").held_out
    manifest = json.loads(manifest_path(prefix).read_text())
    assert told.bytes_per_token == manifest["bytes_per_token"]
    manifest_path(prefix).unlink()
    (counted,) = opened(prefix, "--val_split", "4", "--tokenizer", "bytes").held_out
    # every id but 0 is one byte
    ids = torch.stack([sample.targets for sample in counted.dataset])
    assert counted.bytes_per_token == (ids != 0).float().mean().item()
    samples = opened(prefix, "--val_split", "4")
    assert samples.held_out[0].bytes_per_token is None
    assert any("without bits per byte" in note and "--tokenizer" in note for note in samples.notes)
