"""The trainer reproduces a plain training loop that is written out here from the specification.

Nothing of the trainer is used but the network's forward pass and the initial weights on disk: the
order of the samples, the loss with its L2Wrap term, groups, rates, decay, clipping and Adam are
spelt out again, in fp64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_train.checkpoint.weights import load_weights
from rwkv_train.inference.loading import load_model
from rwkv_train.training.reporting.metrics_file import read_metrics
from tests.helpers import load_json

STEPS = 8
BATCH, T = 4, 32
# version -> name in the vectors, eps of Adam, factor of the first warmup step
HABITS = {
    "4": (("v4neo", ""), 1e-8, 0.2),
    "5": (("v5", "x052"), 1e-8, 0.01),
    "6": (("v5", "x060"), 1e-8, 0.01),
    "7": (("v7", "x070"), 1e-18, 0.01),
}


@dataclass(frozen=True)
class Curve:
    """The numbers of a schedule: budget X in tokens, length N of the step-based curve in steps.

    window: tokens of a row that a step reads.
    """

    lr_init: float = 2e-3
    lr_final: float = 2e-4
    warmup: int = 3
    budget: int = 2000
    length: int = 0
    decay: float = 0.0
    decay_final: float | None = None
    clip: float = 1.0
    window: int = T
    # rate factor of the hidden matrices under Muon; None: all are trained by Adam
    muon: float | None = None

    def progress(self, step: int) -> tuple[float, float]:
        """q of the token-based and of the step-based rule."""
        tokens = BATCH * self.window
        by_tokens = by_steps = 0.0
        if self.budget:
            by_tokens = (step * tokens - self.warmup * tokens) / (
                abs(self.budget) - self.warmup * tokens
            )
        if self.length:
            by_steps = (step - self.warmup + 1) / (self.length - self.warmup)
        return tuple(min(1.0, max(0.0, q)) for q in (by_tokens, by_steps))

    def rate(self, step: int, floor: float) -> float:
        by_tokens, by_steps = self.progress(step)
        ratio = self.lr_final / self.lr_init
        cosine = self.lr_init * ((1 + ratio) / 2 + (1 - ratio) / 2 * math.cos(math.pi * by_tokens))
        exponential = self.lr_init * ratio**by_steps
        rate = cosine if self.budget > 0 else exponential
        if self.budget < 0:
            rate = (cosine + exponential) / 2
        return rate * (floor + (1 - floor) * step / self.warmup if step < self.warmup else 1)

    def weight_decay(self, step: int) -> float:
        if self.decay_final is None:
            return self.decay
        by_tokens, by_steps = self.progress(step)
        q = by_tokens if self.budget else by_steps
        return self.decay * (self.decay_final / self.decay) ** q


def batches(prefix: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Step after step the tokens and targets, [BATCH, T] each, in the order of RWKV-LM."""
    tokens = np.fromfile(f"{prefix}.bin", dtype="<u2").astype(np.int64)
    prime = len(tokens) // T - 1
    while prime % 3 != 2 or any(prime % d == 0 for d in range(2, prime)):
        prime -= 1
    factor = math.trunc(prime * (math.sqrt(5) - 1) / 2)
    for step in range(STEPS):
        numbers = range(1 + step * BATCH, 1 + (step + 1) * BATCH)
        starts = [factor * n**3 % prime * T for n in numbers]
        rows = torch.from_numpy(np.stack([tokens[s : s + T + 1] for s in starts]))
        yield rows[:, :-1], rows[:, 1:]


def windows(
    rows: Iterator[tuple[Tensor, Tensor]], length: int
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """The rows' parts of `length` tokens one after another, and whether rows start there."""
    for tokens, targets in rows:
        for first in range(0, T, length):
            part = slice(first, first + length)
            yield tokens[:, part], targets[:, part], first == 0


def detached(state: tuple) -> tuple:
    """The state without its history."""
    return tuple(
        type(layer)(
            *(
                tuple(p.detach() for p in part) if isinstance(part, tuple) else part.detach()
                for part in layer
            )
        )
        for layer in state
    )


def groups_of(version: str, decays: bool) -> dict[str, tuple[float, bool]]:
    """Parameter name with * for the block -> rate factor and whether it decays."""
    (generation, testing), _, _ = HABITS[version]
    for row in load_json("param_groups")["rows"]:
        same = (row["generation"], row["my_testing"]) == (generation, testing)
        plain = (row["stage"], row["layerwise_lr"], row["train_type"]) == (3, 1, "")
        if same and plain and (row["weight_decay"] > 0) == decays:
            return {
                name: (group["lr_factor"], group["weight_decay"] > 0)
                for group in row["groups"]
                for name in group["tensors"]
            }
    raise LookupError(f"no vector for RWKV-{version}")


def orthogonalised(matrix: Tensor) -> Tensor:
    """Five steps of the quintic iteration of Muon's author towards all singular values one."""
    x = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def expected_run(
    version: str, init: Path, prefix: Path, curve: Curve
) -> tuple[list[dict], dict[str, Tensor]]:
    """loss, grad_norm, lr, weight_decay of every step, and the weights after the last."""
    _, eps, floor = HABITS[version]
    model = load_model(
        init, device=torch.device("cpu"), dtype=torch.float64, wkv_backend="reference"
    )
    model.requires_grad_(True)
    groups = groups_of(version, curve.decay > 0)
    moments = {
        name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()
    }
    records = []
    state = None
    parts = windows(batches(prefix), curve.window)
    for step, (tokens, targets, begins) in enumerate(islice(parts, STEPS)):
        logits, state = model(tokens, None if begins else detached(state))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        largest = logits.max(-1).values
        model.zero_grad()
        (loss + 0.5e-4 / targets.numel() * largest.square().sum()).backward()
        # the first layer of RWKV-7 has tensors for the value residual that it does not use
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
        }
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        rate, decay = curve.rate(step, floor), curve.weight_decay(step)
        scale = min(1.0, curve.clip / norm) if curve.clip > 0 else 1.0
        with torch.no_grad():
            for name, p in model.named_parameters():
                factor, decays = groups[re.sub(r"\.\d+\.", ".*.", name)]
                m, v = moments[name]
                gradient = gradients[name] * scale
                if curve.muon is not None and decays and name not in ("emb.weight", "head.weight"):
                    m.copy_(0.95 * m + 0.05 * gradient)
                    direction = orthogonalised(0.95 * m + 0.05 * gradient)
                    p *= 1 - rate * curve.muon * decay
                    p -= rate * curve.muon * 0.2 * math.sqrt(max(p.shape)) * direction
                    continue
                m.copy_(0.9 * m + 0.1 * gradient)
                v.copy_(0.99 * v + 0.01 * gradient**2)
                corrected = m / (1 - 0.9 ** (step + 1))
                update = corrected / ((v / (1 - 0.99 ** (step + 1))).sqrt() + eps)
                p -= rate * factor * (update + (decay if decays else 0.0) * p)
        records.append(
            {
                "step": step,
                "loss": loss.item(),
                "grad_norm": norm,
                "lr": rate,
                "weight_decay": decay,
                "tokens": (step + 1) * BATCH * curve.window,
            }
        )
    return records, model.state_dict()


CASES = [
    *(pytest.param(v, Curve(), {}, id=f"{v}-plain") for v in HABITS),
    *(
        pytest.param(
            v,
            Curve(decay=0.1, clip=0.2),
            {"weight_decay": 0.1, "grad_clip": 0.2, "accumulate_grad_batches": 2, "micro_bsz": 2},
            id=f"{v}-decay-clip-accumulation",
        )
        for v in HABITS
    ),
    *(
        pytest.param(
            v, Curve(budget=700, window=8), {"chunk_len": 4, "bptt_chunks": 2}, id=f"{v}-windows"
        )
        for v in HABITS
    ),
    *(pytest.param(v, Curve(), {"chunk_len": 13, "grad_cp": 1}, id=f"{v}-chunks") for v in "47"),
    pytest.param(
        "5",
        Curve(budget=0, length=10, clip=0),
        {"exit_tokens": 0, "epoch_steps": 5, "epoch_count": 2, "grad_clip": 0},
        id="5-exponential",
    ),
    pytest.param(
        "6",
        Curve(budget=-2000, length=10, decay=0.1, decay_final=0.01),
        {
            "exit_tokens": -2000,
            "epoch_steps": 5,
            "epoch_count": 2,
            "weight_decay": 0.1,
            "weight_decay_final": 0.01,
        },
        id="6-mean-of-both",
    ),
]


@pytest.mark.parametrize(("version", "curve", "extra"), CASES)
def test_every_step_equals_the_loop_written_out(
    run_training: Callable[..., int],
    tmp_path: Path,
    corpus: Path,
    version: str,
    curve: Curve,
    extra: dict,
):
    options = {
        "rwkv_version": version,
        "head_size": None if version == "4" else 32,
        "wkv_backend": "auto",
        "max_steps": STEPS,
        "micro_bsz": BATCH,
        "ctx_len": T,
        "lr_init": curve.lr_init,
        "lr_final": curve.lr_final,
        "warmup_steps": curve.warmup,
        "exit_tokens": curve.budget,
        **extra,
    }
    assert run_training(**options) == 0
    out = tmp_path / "out"
    records = read_metrics(out)
    expected, weights = expected_run(version, out / "rwkv-init.pth", corpus, curve)
    assert len(records) == len(expected) == STEPS
    # the curve really falls: the test would notice a step that changes nothing
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.05
    for record, wanted in zip(records, expected):
        for key, value in wanted.items():
            limit = 1e-4 if key in ("loss", "grad_norm") else 1e-12
            assert record[key] == pytest.approx(value, rel=limit, abs=0), (record["step"], key)
    begun, ended = load_weights(out / "rwkv-init.pth"), load_weights(out / "rwkv-1.pth")
    for name, value in weights.items():
        moved = (value - begun[name]).norm()
        # 1e-6: what eight roundings to fp32 may add
        assert (ended[name] - value).norm() <= 1e-3 * moved + 1e-6 * value.norm(), name
