"""Compares ways in which a model gives the same numbers: at once, in chunks, token by token.

In fp64 and by this machine's backends, with weights none of which is trivial; besides in fp32 by
the step that programs decode with on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import torch
from torch import Tensor

from rwkv_train.config.resolve.model_sizes import complete_model
from rwkv_train.config.schema import ModelConfig
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.parameters import initialize
from rwkv_train.models.recorded_step import RecordedStep
from rwkv_train.models.registry import build_model
from rwkv_train.ops.head_loss import Targets
from rwkv_train.verification.fixed_numbers import FixedNumbers
from rwkv_train.verification.item_names import MODEL
from rwkv_train.verification.outcomes import Outcome, Part
from rwkv_train.verification.tolerances import TOLERANCE, relative_rms

_TIME, _CHUNK, _VOCABULARY = 37, 16, 50
# Where documents start: beside, at and across the borders of chunks.
_STARTS = (5, 16, 31)
_BOUND = TOLERANCE[torch.float64]
_WATCHED_TOKENS = (0, 1, 15, 16, _TIME - 1)


def check_model_ways(version: str) -> Part:
    """Returns what was found out about a version's model."""
    item, model, numbers = f"{MODEL}{version}", _model(version), FixedNumbers(500)
    tokens, ids = (numbers.integers(_VOCABULARY, 2, _TIME) for _ in range(2))
    findings = [
        Outcome(item, "auto", "fp64", result, case, relative_rms(value, right), _BOUND)
        for case, result, value, right in _comparisons(model, tokens, ids)
    ]
    bound = TOLERANCE[torch.float32]
    findings += [
        Outcome(item, "auto", "fp32", "logits", case, relative_rms(value, right), bound)
        for case, value, right in _decoded(model, tokens)
    ]
    return Part(item, tuple(findings))


def _model(version: str) -> RWKV:
    heads = {} if version == "4" else {"head_size": 32}
    config = ModelConfig(
        rwkv_version=version, n_layer=2, n_embd=64, vocab_size=_VOCABULARY, **heads
    )
    model = build_model(complete_model(config)).double()
    initialize(model, seed=3, lr_init=1e-2)
    draws = FixedNumbers(501)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(draws.normal(*parameter.shape), alpha=parameter.shape[-1] ** -0.5)
    return model


def _comparisons(
    model: RWKV, tokens: Tensor, ids: Tensor
) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Yields the way, which of its results, its value and the right one."""
    reset = torch.zeros_like(tokens, dtype=torch.bool)
    reset[:, list(_STARTS)] = True
    whole = _loss_and_gradients(model, tokens, ids, reset)
    model.chunk_len = _CHUNK
    pieces = _loss_and_gradients(model, tokens, ids, reset)
    model.chunk_len, model.grad_cp = None, True
    again = _loss_and_gradients(model, tokens, ids, reset)
    model.grad_cp = False
    for name, right in whole.items():
        yield f"rows read in chunks of {_CHUNK}", name, pieces[name], right
        yield "blocks computed again", name, again[name], right
    with torch.no_grad():
        packed, _ = model(tokens, reset=reset)
        plain, _ = model(tokens)
        borders = (0, *_STARTS, _TIME)
        for start, end in pairwise(borders):
            alone, _ = model(tokens[:, start:end])
            case = f"documents packed, the one at {start}"
            yield case, "logits", packed[:, start:end], alone
        state = None
        for t in range(_TIME):
            logits, state = model(tokens[:, t : t + 1], state)
            if t in _WATCHED_TOKENS:
                yield f"token by token, token {t}", "logits", logits[:, 0], plain[:, t]


def _decoded(model: RWKV, tokens: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields the case, the logits of the step that decodes, in fp32, and the right ones."""
    plain, _ = model(tokens)
    frozen = deepcopy(model).float().requires_grad_(False)
    step = RecordedStep(frozen)
    _, state = frozen(tokens[:, :1])
    for t in range(1, _TIME):
        features, state = step.features(tokens[:, t : t + 1], state)
        if t in _WATCHED_TOKENS:
            yield f"decoded, token {t}", step.logits(features[:, 0]), plain[:, t].detach()


def _loss_and_gradients(
    model: RWKV, tokens: Tensor, ids: Tensor, reset: Tensor
) -> dict[str, Tensor]:
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = model.loss(tokens, Targets(ids), reset=reset)
    gradients = torch.autograd.grad(
        loss, list(learning.values()), materialize_grads=True, allow_unused=True
    )
    return {"loss": loss.detach(), **{f"gradient of {n}": g for n, g in zip(learning, gradients)}}
