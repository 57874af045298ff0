"""Validation: sums by position, bits per byte, equal for any processes, and the best weights."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import train
from make_data import main as make_data
from rwkv_train.checkpoint.resume import load_state, save_state
from rwkv_train.config.load import load_config
from rwkv_train.config.resolve.resolve import resolve
from rwkv_train.data.binidx.manifest import manifest_path
from rwkv_train.data.samples.batch import Batch
from rwkv_train.data.samples.dataset import ValidationDataset
from rwkv_train.data.samples.token_sources import open_source
from rwkv_train.data.sampling.held_out import hold_out
from rwkv_train.inference.loading import load_model
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.metrics_file import read_metrics
from rwkv_train.training.reporting.validation_record import bucket_count, make_record
from rwkv_train.training.start.discover import discover
from rwkv_train.training.start.open_data import HeldOutSource, RunSamples, open_samples
from rwkv_train.training.start.resume_point import Fresh
from rwkv_train.training.validation import sums_by_position, validate
from tests.data.samples.token_arrays import Counting
from tests.models.tiny import random_tokens, tiny_model
from tests.training.runs import assert_same_weights, weights


def test_the_record_is_that_worked_out_by_hand():
    # Two samples of 3 positions: buckets 0-1, 1-2, 2-3. The second target of sample 0 has
    # weight 0, that of sample 1 weight 3.
    sums = np.array([[1.0, 0.0, 4.0], [2.0, 6.0, 5.0]])
    counts = np.array([[1.0, 0.0, 1.0], [1.0, 3.0, 1.0]])
    record = make_record(7, sums, counts, 3, {"a": slice(0, 1), "b": slice(1, 2)}, [2.0, 4.0])
    assert record.loss == pytest.approx(18 / 7) and record.tokens == 7
    assert [(b.name, b.tokens, b.loss) for b in record.by_position] == [
        ("0-1", 2, 1.5),
        ("1-2", 3, 2.0),
        ("2-3", 2, 4.5),
    ]
    mean = sum(b.tokens * b.loss for b in record.by_position) / record.tokens
    assert mean == pytest.approx(record.loss, rel=1e-14)
    assert record.by_source == {"a": 2.5, "b": pytest.approx(13 / 5)}
    # 18 nats are 25.968... bits, over 2 tokens of 2 bytes and 5 of 4
    assert record.bits_per_byte == pytest.approx(18 / math.log(2) / 24)
    assert record.perplexity == pytest.approx(math.exp(18 / 7))
    unknown = make_record(7, sums, counts, 3, {"a": slice(0, 1), "b": slice(1, 2)}, [2.0, None])
    assert unknown.bits_per_byte is None and "val_bits_per_byte" not in unknown.values()


def test_a_model_that_guesses_among_256_bytes_has_eight_bits_per_byte():
    sums, counts = np.full((1, 1), 100 * math.log(256)), np.full((1, 1), 100.0)
    record = make_record(0, sums, counts, 1, {"a": slice(0, 1)}, [1.0])
    assert record.bits_per_byte == pytest.approx(8.0)
    assert record.by_source == {}


@pytest.mark.parametrize(
    ("length", "buckets"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (1024, 11)]
)
def test_buckets_are_powers_of_two(length, buckets):
    # 0 | 1 | 2 3 | 4 ... 7 | ...
    assert bucket_count(length) == buckets == len({p.bit_length() for p in range(length)})


@pytest.mark.parametrize("version", ["4", "5", "6", "7"])
@pytest.mark.parametrize("chunk_len", [1, 4, 9, 100])
def test_sums_by_position_are_those_of_all_logits(version, chunk_len):
    model = tiny_model(version)
    tokens, targets = random_tokens(3, 9), random_tokens(3, 9, seed=2)
    mask = torch.arange(27).view(3, 9) % 4 / 2
    reset = torch.zeros(3, 9, dtype=torch.bool)
    reset[1, 3] = reset[2, 0] = reset[2, 8] = True
    batch = Batch(tokens, targets, mask, reset, ("",) * 3, (0, 1, 2), 0)
    with torch.no_grad():
        found = sums_by_position(model, batch, chunk_len, None)
        logits, _ = model(tokens, reset=reset)
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").tolist()
    expected = np.zeros((2, 3, 5))
    for row in range(3):
        start = 0
        for t in range(9):
            start = t if reset[row, t] else start
            bucket, weight = (t - start).bit_length(), float(mask[row, t])
            expected[:, row, bucket] += losses[row][t] * weight, weight
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


class OneOfSeveral:
    """Stands in for Lightning's trainer on one rank; `reduce` adds what earlier ranks gave."""

    def __init__(self, rank: int, ranks: int, earlier: list[torch.Tensor]) -> None:
        self.precision_plugin = SimpleNamespace(val_step_context=contextlib.nullcontext)
        self.global_rank, self.world_size = rank, ranks
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=self.reduce)
        self.earlier = earlier

    def reduce(self, tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        self.earlier.append(tensor)
        return sum(self.earlier)


def record_of(ranks: int, micro_bsz: int):
    model = tiny_model("6")
    source = Counting(50)
    sources = [
        HeldOutSource("a", ValidationDataset(source, 9, [0, 10, 20, 25, 40]), 1.5),
        HeldOutSource("b", ValidationDataset(source, 9, [3, 33]), 2.5),
    ]
    given: list[torch.Tensor] = []
    for rank in range(ranks):
        record = validate(
            OneOfSeveral(rank, ranks, given),
            model,
            sources,
            3,
            micro_bsz=micro_bsz,
            chunk_len=4,
            head_rows=None,
        )
    return record


def test_any_number_of_processes_finds_the_same_losses_exactly():
    one = record_of(1, 2)
    assert one.tokens == 63 and set(one.by_source) == {"a", "b"}
    for ranks in (2, 3, 5):
        assert record_of(ranks, 2) == one


def test_any_micro_batch_finds_the_same_losses_within_rounding():
    one = record_of(1, 1)
    for micro_bsz in (2, 3, 16):
        assert record_of(1, micro_bsz).loss == pytest.approx(one.loss, rel=1e-6)


def test_the_lowest_loss_is_the_best_until_the_held_out_text_changes():
    progress = Progress()
    assert progress.improves(3.0, "a") and not progress.improves(3.0, "a")
    assert progress.improves(2.0, "a") and not progress.improves(math.nan, "a")
    again = Progress.from_dict({**progress.to_dict(), "weights": {}})
    assert not again.improves(2.5, "a") and again.improves(2.5, "b")
    # states of older versions know of no best
    assert Progress.from_dict({"step": 4}) == Progress(step=4)


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
