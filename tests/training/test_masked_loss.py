"""Runs that learn only what a mask counts, and runs that forget where a document starts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import train
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.inference import loading
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.training import runs
from tests.training.masked_data import T, held_out_samples, samples
from tests.training.runs import losses


def load_model(path: Path):
    return loading.load_model(path, device=torch.device("cpu"), dtype=torch.float32)


def token_losses(model, tokens, targets):
    """[T] cross entropy of each target and half the square of each largest logit."""
    logits = model(tokens[None])[0][0].float()
    return functional.cross_entropy(logits, targets, reduction="none"), logits.amax(-1) ** 2 / 2


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
