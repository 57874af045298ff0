"""Damaged files: status 2, one clear line, and nothing is touched."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sampler import sample_offset
from rwkv_train.training.reporting.metrics_file import MetricsFile
from tests.training.damaged_runs import Place
from tests.training.runs import loss_steps


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = torch.load(path, weights_only=True)
    change(weights)
    torch.save(weights, path)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def change_manifest(place: Place, **values: object) -> None:
    path = Path(f"{place.data}.manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


DAMAGES = {
    "index cut off": (
        "paused",
        lambda p: cut(Path(f"{p.data}.idx"), 500),
        ["text.idx", "500 bytes", "again"],
    ),
    "index of something else": (
        "paused",
        lambda p: Path(f"{p.data}.idx").write_bytes(b"{}" * 40),
        ["text.idx", "MMIDIDX"],
    ),
    "empty index": ("paused", lambda p: cut(Path(f"{p.data}.idx"), 0), ["text.idx", "empty"]),
    "data cut off": (
        "paused",
        lambda p: (cut(Path(f"{p.data}.bin"), 30000), Path(f"{p.data}.manifest.json").unlink()),
        ["text.bin", "30000 bytes", "again"],
    ),
    "data missing": (
        "paused",
        lambda p: Path(f"{p.data}.bin").unlink(),
        ["text.bin", "does not exist"],
    ),
    "manifest of other data": (
        "paused",
        lambda p: change_manifest(p, tokens=5),
        ["manifest.json", "5 tokens"],
    ),
    "manifest damaged": (
        "paused",
        lambda p: cut(Path(f"{p.data}.manifest.json"), 40),
        ["manifest.json", "damaged"],
    ),
    "data of another tokenizer": (
        "begun",
        lambda p: change_manifest(p, tokenizer="world", vocab_size=65536),
        ["257 rows", "65536", "world"],
    ),
    "validation data cut off": (
        "paused",
        lambda p: cut(Path(f"{p.data}_val.idx"), 100),
        ["text_val.idx", "100 bytes"],
    ),
    "NaN in the weights": (
        "begun",
        lambda p: change_weights(
            p.begun / "rwkv-init.pth", lambda w: w["head.weight"].fill_(torch.nan)
        ),
        ["rwkv-init.pth", "head.weight", "NaN"],
    ),
    "weights cut off": (
        "begun",
        lambda p: cut(p.begun / "rwkv-init.pth", 9000),
        ["rwkv-init.pth", "truncated"],
    ),
    "weights overwritten": (
        "begun",
        lambda p: (p.begun / "rwkv-init.pth").write_bytes(b"text " * 999),
        ["rwkv-init.pth"],
    ),
    "one bit of the weights": (
        "begun",
        lambda p: flip(p.begun / "rwkv-init.pth", 60000),
        ["rwkv-init.pth", "checksum"],
    ),
    "code in place of weights": (
        "begun",
        lambda p: (p.begun / "rwkv-init.pth").write_bytes(pickle.dumps(Place, protocol=2)),
        ["rwkv-init.pth", "tensors"],
    ),
    "tensor missing": (
        "begun",
        lambda p: change_weights(p.begun / "rwkv-init.pth", lambda w: w.pop("blocks.1.ln2.bias")),
        ["rwkv-init.pth", "missing: blocks.1.ln2.bias", "--load_partial"],
    ),
    "tensor too many": (
        "begun",
        lambda p: change_weights(
            p.begun / "rwkv-init.pth", lambda w: w.update(extra=torch.ones(3))
        ),
        ["rwkv-init.pth", "unexpected: extra"],
    ),
    "a layer missing": (
        "begun",
        lambda p: change_weights(
            p.begun / "rwkv-init.pth",
            lambda w: [w.pop(k) for k in list(w) if k.startswith("blocks.0.")],
        ),
        ["block 0"],
    ),
    "the end of another trainer's run": (
        "begun",
        lambda p: shutil.copy(p.begun / "rwkv-init.pth", p.begun / "rwkv-final.pth"),
        ["rwkv-final.pth", "--proj_dir"],
    ),
    "the end of a run and its state damaged": (
        "begun",
        lambda p: (
            shutil.copy(p.begun / "rwkv-init.pth", p.begun / "rwkv-final.pth"),
            (p.begun / "rwkv-final.state").write_bytes(b"x"),
        ),
        ["rwkv-final.pth", "rwkv-final.state", "damaged"],
    ),
    "everything damaged": (
        "paused",
        lambda p: [cut(f, 100) for f in p.paused.glob("rwkv-*")],
        ["rwkv-0.state", "rwkv-0.pth", "rwkv-init.pth"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_files_are_refused(place: Place, refused: Callable[..., str], name: str):
    folder, damage, words = DAMAGES[name]
    damage(place)
    line = refused(
        place.command("--proj_dir", getattr(place, folder), "--val_data_file", f"{place.data}_val")
    )
    assert all(word in line for word in words), line


def test_a_token_beyond_the_vocabulary_ends_the_run_before_its_step_counts(
    place: Place, capfd: pytest.CaptureFixture[str]
):
    Path(f"{place.data}.manifest.json").unlink()
    source = open_source(str(place.data), "binidx")
    # the third sample of step 6, counted from 0, in batches of 4
    number = 1 + 6 * 4 + 2
    position = sample_offset(number, magic_prime(source.tokens, 32), 32) + 9
    with Path(f"{place.data}.bin").open("r+b") as file:
        file.seek(2 * position)
        file.write((257).to_bytes(2, "little"))
    kept = {path: path.read_bytes() for path in place.paused.glob("rwkv-*")}
    capfd.readouterr()
    changed = ("--accept_changes", "data_file")
    assert train.main(place.command("--proj_dir", place.paused, "--num_workers", 2, *changed)) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for words in (
        f"token id 257 at position 9 of sample {number} (token {position} of the data)",
        "vocabulary of 257",
        "tokenizer",
    ):
        assert words in err
    assert loss_steps(place.paused) == [0, 1, 2, 3, 4, 5]
    assert {path: path.read_bytes() for path in place.paused.glob("rwkv-*")} == kept


@pytest.mark.parametrize("workers", [0, 2])
def test_data_that_is_cut_off_under_a_run_ends_it_with_one_line(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], workers: int
):
    record = MetricsFile.on_step

    def cut_data(self, step, progress):
        record(self, step, progress)
        if step.step == 6:
            os.truncate(f"{place.data}.bin", 4096)

    monkeypatch.setattr(MetricsFile, "on_step", cut_data)
    capfd.readouterr()
    assert train.main(place.command("--proj_dir", place.paused, "--num_workers", workers)) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "text.bin was cut off from" in err


def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    place: Place, capfd: pytest.CaptureFixture[str]
):
    (place.begun / "rwkv-0.pth").mkdir()
    capfd.readouterr()
    assert (
        train.main(
            place.command("--proj_dir", place.begun, "--max_steps", 5, "--save_retry_seconds", 0)
        )
        == 1
    )
    lines = capfd.readouterr().err.split("\n")
    warnings = [line for line in lines if line.startswith("WARNING: save ")]
    assert len(warnings) == 2 and all("rwkv-0.pth" in line for line in warnings), lines
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert "3 times in a row" in error and "rwkv-0.pth" in error and "directory" in error
    assert {p.name for p in place.begun.glob("rwkv-*")} == {"rwkv-init.pth", "rwkv-0.pth"}
