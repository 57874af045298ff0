"""Models that exports are tested with: one with random weights, one that has been trained."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.export.model_source import SourceModel, read_source
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize
from rwkv_train.models.registry import build_model
from rwkv_train.ops.head_loss import Targets
from tests.models.tiny import UNEQUAL_RANKS, tiny_config, tiny_model

KINDS = ("random", "trained")
STEPS = 25
# The bytes tokenizer's ids of a text with something to learn.
TEXT = "".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(400))


def random_weights(version: str, **sizes) -> RWKV:
    """Returns a model in which no number is zero and all ranks are different, vocabulary 257."""
    return tiny_model(version, **{"vocab_size": 257, **UNEQUAL_RANKS[version], **sizes})


@cache
def trained_weights(version: str, **sizes) -> RWKV:
    """Returns a model that was trained on a text for some steps, vocabulary 257."""
    config = tiny_config(version, **{"vocab_size": 257, **sizes})
    model = build_model(config, wkv_backend="chunked")
    initialize(model, seed=0, lr_init=1e-2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = torch.tensor([byte + 1 for byte in TEXT.encode()])
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        at = torch.randint(len(ids) - 65, (4,), generator=generator)
        rows = torch.stack([ids[n : n + 65] for n in at.tolist()])
        loss = model.loss(rows[:, :-1], Targets(rows[:, 1:]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def source_model(version: str, kind: str, folder: Path, **sizes) -> SourceModel:
    """Saves a model of that kind in `folder` and reads it as an export does."""
    make = random_weights if kind == "random" else trained_weights
    model = make(version, **sizes)
    path = folder / f"{kind}{version}.pth"
    save_weights(path, model.state_dict(), torch.float32)
    return read_source(path)
