"""Runs that learn only what a mask counts, and runs that forget where a document starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import train
from rwkv_train.checkpoint.digest import content_digest
from rwkv_train.checkpoint.resume import load_state
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.sampling.magic_prime import magic_prime
from rwkv_train.data.sampling.sampler import sample_offset
from rwkv_train.inference import loading
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.training import runs
from tests.training.runs import losses

T = 32


@pytest.fixture(scope="module")
def masked(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with weights 0, 1 and 2 in runs of some tokens, here many, there none."""
    folder = tmp_path_factory.mktemp("masked")
    generator = np.random.default_rng(7)
    for name in ("text", "text_val"):
        for ending in ("bin", "idx", "manifest.json"):
            shutil.copy(f"{corpus.parent / name}.{ending}", folder)
        tokens = Binidx(folder / name).tokens
        runs = generator.choice([0, 0, 1, 2], size=tokens // 7 + 1)
        weights = np.repeat(runs, 7)[:tokens].astype(np.uint8)
        (folder / f"{name}.mask").write_bytes(weights.tobytes())
    return folder / "text"


def load_model(path: Path):
    return loading.load_model(path, device=torch.device("cpu"), dtype=torch.float32)


def token_losses(model, tokens, targets):
    """[T] cross entropy of each target and half the square of each largest logit."""
    logits = model(tokens[None])[0][0].float()
    return functional.cross_entropy(logits, targets, reduction="none"), logits.amax(-1) ** 2 / 2


def samples(prefix, numbers):
    """tokens, targets, the targets' weights and the offset of those samples, by hand."""
    pair = Binidx(prefix)
    prime = magic_prime(pair.tokens, T)
    return cut_out(prefix, [sample_offset(n, prime, T) for n in numbers])


def held_out_samples(prefix, count):
    """As `samples`, spread evenly from the first token to the last target."""
    last = Binidx(prefix).tokens - 1 - T
    return cut_out(prefix, [i * last // (count - 1) for i in range(count)])


def cut_out(prefix, offsets):
    pair, path = Binidx(prefix), Path(f"{prefix}.mask")
    weights = np.fromfile(path, np.uint8) if path.exists() else np.ones(pair.tokens, np.uint8)
    for offset in offsets:
        window = torch.from_numpy(pair.get(offset, T + 1))
        counts = torch.from_numpy(weights[offset + 1 : offset + 1 + T].astype(np.float32))
        yield window[:-1], window[1:], counts, offset


def test_loss_and_gradient_are_those_of_a_loop_over_the_whole_batch(
    masked: Path, tmp_path: Path, run_training: Callable[..., int]
):
    out = tmp_path / "out"
    assert (
        run_training(
            data_file=masked, micro_bsz=2, accumulate_grad_batches=3, max_steps=1, save_fp32=1
        )
        == 0
    )
    model = load_model(out / "rwkv-init.pth").requires_grad_(True)
    total = counted = 0
    for tokens, targets, weights, _ in samples(masked, range(1, 7)):
        ce, wrap = token_losses(model, tokens, targets)
        total = total + (weights * ce).sum()
        counted += weights.sum()
        # the gradient's own term, see ops.head_loss
        total = total + 1e-4 * ((weights * wrap).sum() - (weights * wrap).sum().detach())
    loss = total / counted
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    (record,) = read_metrics(out)
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_validation_is_the_weighted_mean_over_all_held_out_samples(
    masked: Path, tmp_path: Path, run_training: Callable[..., int]
):
    val = f"{masked}_val"
    assert (
        run_training(
            data_file=masked,
            val_data_file=val,
            val_samples=5,
            max_steps=1,
            val_every=1,
            save_fp32=1,
            lr_init=0,
            lr_final=0,
            exit_tokens=0,
            epoch_count=1,
        )
        == 0
    )
    model = load_model(tmp_path / "out" / "rwkv-init.pth")
    total = counted = 0.0
    for tokens, targets, counts, _ in held_out_samples(val, 5):
        ce, _ = token_losses(model, tokens, targets)
        total += (counts * ce).sum().item()
        counted += counts.sum().item()
    (found,) = {r["val_loss"] for r in read_metrics(tmp_path / "out") if "val_loss" in r}
    assert found == pytest.approx(total / counted, rel=1e-5)


def test_a_window_learns_its_own_counted_tokens_from_the_state_carried_to_it(
    masked: Path, tmp_path: Path, run_training: Callable[..., int]
):
    # fresh weights make no use of the state
    base = tmp_path / "base" / "rwkv-final.pth"
    assert run_training(proj_dir=base.parent, data_file=masked, lr_init=1e-2, lr_final=1e-2) == 0
    # a rate of nothing: the weights stay those of the beginning
    assert (
        run_training(
            data_file=masked,
            micro_bsz=2,
            accumulate_grad_batches=2,
            max_steps=8,
            chunk_len=4,
            bptt_chunks=2,
            load_model=base,
            lr_init=1e-30,
            lr_final=1e-30,
            reset_at_documents=1,
        )
        == 0
    )
    model = load_model(base)
    # bytes data: a document starts after every token 0
    text = Binidx(masked)
    begins = np.append(True, text.get(0, text.tokens - 1) == 0)
    for group in range(2):
        total, counted = torch.zeros(T), torch.zeros(T)
        numbers = range(1 + 4 * group, 5 + 4 * group)
        for tokens, targets, weights, offset in samples(masked, numbers):
            reset = torch.from_numpy(begins[offset : offset + T])
            logits, _ = model(tokens[None], reset=reset[None])
            ce = functional.cross_entropy(logits[0].float(), targets, reduction="none")
            total, counted = total + weights * ce.detach(), counted + weights
        for window in range(4):
            part = slice(8 * window, 8 * window + 8)
            expected = (total[part].sum() / counted[part].sum()).item()
            found = losses(tmp_path / "out")[4 * group + window]
            assert found == pytest.approx(expected, rel=1e-5), (group, window)


def curve(folder: Path, key: str) -> list[float]:
    return [r[key] for r in read_metrics(folder) if key in r]


@pytest.fixture(scope="module")
def split(masked: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs eight steps of four samples, however they are split; returns the run's folder."""

    def run(devices: int, micro_bsz: int, accumulate: int, strategy: str = "auto") -> Path:
        folder = tmp_path_factory.mktemp("split") / "out"
        flags = {
            "proj_dir": folder,
            "data_file": masked,
            "val_data_file": f"{masked}_val",
            "val_samples": 5,
            "val_every": 4,
            "rwkv_version": 6,
            "n_layer": 2,
            "n_embd": 32,
            "head_size": 32,
            "ctx_len": T,
            "micro_bsz": micro_bsz,
            "devices": devices,
            "accumulate_grad_batches": accumulate,
            "strategy": strategy,
            "max_steps": 8,
            "exit_tokens": 2000,
            "epoch_steps": 100,
            "lr_init": "2e-3",
            "lr_final": "2e-4",
            "accelerator": "cpu",
            "precision": "fp32",
            "num_workers": 2 if devices == 1 else 0,
            "plot": 0,
            "wkv_backend": "chunked",
            "reset_at_documents": 1,
        }
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        if devices == 1:
            assert train.main(words) == 0
            return folder
        done = runs.start("train.py", *words, ranks=devices)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return run


@pytest.mark.slow
def test_every_split_of_a_batch_has_the_same_loss_curve(split: Callable[..., Path]):
    whole = split(devices=1, micro_bsz=4, accumulate=1)
    assert len(curve(whole, "loss")) == 8
    others = [
        split(devices=1, micro_bsz=2, accumulate=2),
        split(devices=2, micro_bsz=2, accumulate=1, strategy="ddp"),
        split(devices=2, micro_bsz=1, accumulate=2, strategy="deepspeed_stage_2"),
    ]
    for other in others:
        for key in ("loss", "val_loss", "grad_norm"):
            assert curve(other, key) == pytest.approx(curve(whole, key), rel=1e-4), (other, key)


@pytest.fixture
def counted_in(masked: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes data whose mask counts the tokens of these samples of T tokens alone."""

    def make(*numbers: int) -> Path:
        prefix = tmp_path / "text"
        for ending in ("bin", "idx", "manifest.json"):
            shutil.copy(f"{masked}.{ending}", tmp_path)
        weights = np.zeros(Binidx(prefix).tokens, np.uint8)
        for _, _, _, offset in samples(prefix, numbers):
            weights[offset + 1 : offset + 1 + T] = 1
        (tmp_path / "text.mask").write_bytes(weights.tobytes())
        return prefix

    return make


def assert_same_model(one: dict, other: dict) -> None:
    for part in ("weights", "moments"):
        assert one[part] and content_digest(one[part]) == content_digest(other[part]), part
    assert one["optimizer_steps"] == other["optimizer_steps"]


EMPTY = "empty: the loss mask counts no token"
# what would move weights without a gradient: momentum, weight decay
MOVING = {"epoch_steps": 100, "weight_decay": 0.5, "lr_init": 1e-2, "lr_final": 1e-2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "muon"},
        {"strategy": "deepspeed_stage_1"},
        {"strategy": "deepspeed_stage_2", "precision": "bf16"},
        {"strategy": "deepspeed_stage_3", "micro_bsz": 2, "accumulate_grad_batches": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_a_step_without_a_counted_token_is_skipped_and_changes_nothing(
    counted_in: Callable[..., Path],
    tmp_path: Path,
    flags: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
    changes: dict,
):
    # Only steps 0 and 6 have something to learn.
    data = counted_in(*range(1, 5), *range(25, 29))
    options = {"data_file": data, "save_every_steps": 1, "keep_last": 9, **MOVING, **changes}
    assert train.main(flags(max_steps=7, **options)) == 0
    out = capfd.readouterr().out
    found = read_metrics(tmp_path / "out")
    assert [r["step"] for r in found if "loss" in r] == [0, 6]
    empty = [r for r in found if "skipped" in r]
    assert [(r["step"], r["skipped"], r["samples"]) for r in empty] == [
        (step, EMPTY, [1 + 4 * step, 4 + 4 * step]) for step in range(1, 6)
    ]
    assert f"step 1 skipped, {EMPTY} of samples 5 to 8" in out
    assert out.count("counts no token of samples") == 3
    assert "5 steps were skipped as empty" in out and "WARNING" not in out
    states = [load_state(tmp_path / "out" / f"rwkv-step-{step}.state") for step in (1, 6)]
    assert_same_model(*states)
    assert [state["step"] for state in states] == [1, 6]
    # The detector's loss of 0 would make the next one a spike.
    assert states[1]["guard"]["losses"] == [found[0]["loss"]]
    assert states[1]["epoch_loss_steps"] == 1


def test_a_run_resumes_exactly_before_within_and_after_empty_steps(
    counted_in: Callable[..., Path], tmp_path: Path, run_training: Callable[..., int]
):
    options = {"data_file": counted_in(*range(1, 9), *range(17, 25)), **MOVING}
    # 8 steps, of which 2, 3, 6 and 7 are empty
    assert run_training(proj_dir=tmp_path / "whole", exit_tokens=8 * 4 * T, **options) == 0
    for steps in (2, 3, 4, 7, None):
        line = {"proj_dir": tmp_path / "parts", "exit_tokens": 8 * 4 * T, "max_steps": steps}
        assert run_training(**line, **options) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert list(losses(tmp_path / "whole")) == [0, 1, 4, 5]
    runs.assert_same_weights(tmp_path / "whole/rwkv-final.pth", tmp_path / "parts/rwkv-final.pth")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2"])
def test_a_step_counts_when_one_of_two_ranks_has_a_counted_token(
    counted_in: Callable[..., Path],
    tmp_path: Path,
    flags: Callable[..., list[str]],
    run_training: Callable[..., int],
    strategy: str,
):
    # 1 2 | 3 4, 5 6 | 7 8, 9 10 | 11 12: the first rank counts alone, the second one alone, none.
    options = {"data_file": counted_in(1, 2, 7), "max_steps": 3, **MOVING}
    words = flags(devices=2, micro_bsz=2, strategy=strategy, **options)
    done = runs.start("train.py", *words, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_training(proj_dir=tmp_path / "one", **options) == 0
    for key in ("loss", "grad_norm"):
        both, one = (curve(tmp_path / name, key) for name in ("out", "one"))
        assert len(one) == 2 and both == pytest.approx(one, rel=1e-4), key
    assert [r["step"] for r in read_metrics(tmp_path / "out") if "skipped" in r] == [2]


@pytest.mark.parametrize(
    ("data", "held_out", "note"),
    [
        ("masked", "corpus", "the held-out data has no loss mask: validation counts all"),
        ("corpus", "masked", "training has no mask"),
    ],
)
def test_a_mask_on_one_side_only_is_said(
    masked: Path,
    corpus: Path,
    flags: Callable[..., list[str]],
    capfd: pytest.CaptureFixture[str],
    data: str,
    held_out: str,
    note: str,
):
    prefixes = {"masked": masked, "corpus": corpus}
    line = flags(
        data_file=prefixes[data],
        val_data_file=f"{prefixes[held_out]}_val",
        val_samples=2,
        max_steps=1,
    )
    assert train.main(line) == 0
    assert note in capfd.readouterr().out


def test_a_mask_can_be_left_unused(
    masked: Path, corpus: Path, tmp_path: Path, run_training: Callable[..., int]
):
    for name, changes in {
        "plain": {"data_file": corpus},
        "off": {"data_file": masked, "loss_mask": "off"},
        "on": {"data_file": masked, "loss_mask": "on"},
    }.items():
        assert run_training(proj_dir=tmp_path / name, max_steps=2, **changes) == 0
    assert losses(tmp_path / "plain") == losses(tmp_path / "off") != losses(tmp_path / "on")


@pytest.mark.parametrize("version", "4567")
def test_a_reset_row_is_learnt_as_separate_documents(
    masked: Path, tmp_path: Path, run_training: Callable[..., int], version: str
):
    head_size = None if version == "4" else 32
    # Rates of 0: validation after the step meets the same weights.
    assert (
        run_training(
            data_file=masked,
            rwkv_version=version,
            head_size=head_size,
            max_steps=1,
            reset_at_documents=1,
            save_fp32=1,
            val_data_file=f"{masked}_val",
            val_samples=5,
            val_every=1,
            lr_init=0,
            lr_final=0,
            exit_tokens=0,
            epoch_count=1,
        )
        == 0
    )
    model = load_model(tmp_path / "out" / "rwkv-init.pth")
    expected = loss_of_documents(model, masked, samples(masked, range(1, 5)))
    assert losses(tmp_path / "out")[0] == pytest.approx(expected, rel=1e-5)
    expected = loss_of_documents(model, f"{masked}_val", held_out_samples(f"{masked}_val", 5))
    (found,) = {r["val_loss"] for r in read_metrics(tmp_path / "out") if "val_loss" in r}
    assert found == pytest.approx(expected, rel=1e-5)


def loss_of_documents(model, prefix, rows) -> float:
    """Weighted mean over the rows, every document in them read by itself."""
    pair = Binidx(prefix)
    begins = (pair.pointers // pair.dtype.itemsize).tolist()
    total = counted = 0.0
    split_rows = 0
    for tokens, targets, weights, offset in rows:
        cuts = [0, *(b - offset for b in begins if 0 < b - offset < T), T]
        split_rows += len(cuts) > 2
        for start, end in pairwise(cuts):
            ce, _ = token_losses(model, tokens[start:end], targets[start:end])
            total += (weights[start:end] * ce).sum().item()
            counted += weights[start:end].sum().item()
    assert split_rows >= 1
    return total / counted


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--loss_mask", "on"], ["--loss_mask on", "make_data.py --chat_template"]),
        (["--loss_mask", "maybe"], ["--loss_mask", "auto"]),
        (["--my_qa_mask", "1"], ["--my_qa_mask 1", "make_data.py --chat_template"]),
    ],
)
def test_a_run_that_cannot_have_its_mask_is_refused(place, refused, changes, words):
    message = refused(place.command("--proj_dir", place.empty, *changes))
    assert all(word in message for word in words), message


def test_a_damaged_mask_is_refused_before_anything_is_written(place, refused):
    (place.root / "data" / "text.mask").write_bytes(b"12")
    message = refused(place.command("--proj_dir", place.empty))
    assert "has 2 bytes" in message and "--loss_mask off" in message
    message = refused(
        place.command(
            "--proj_dir",
            place.empty,
            "--loss_mask",
            "off",
            "--val_data_file",
            place.root / "nothing",
        )
    )
    assert "nothing.idx does not exist" in message
