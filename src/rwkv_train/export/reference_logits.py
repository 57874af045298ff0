"""The logits that exports are compared with: ours, in fp64, and how far ours in fp32 are off."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rwkv_train.config.resolved import ResolvedModel
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import DataError
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.registry import build_model

# Longer than a block of 64 tokens, at which libraries that compute in blocks may go wrong.
_RANDOM_TOKENS, _TEXT_TOKENS = 80, 120
_TEXT = (
    "The quick brown fox jumps over the lazy dog; 3.14159 is not 22/7.\n\n"
    "Question: Was ist das größte Tier der Welt? 世界上最大的动物是什么?\n\n"
    "Answer: def blue_whale(metres=30):\n    return metres > 29.9  # Balaenoptera musculus\n"
    "It weighs as much as 30 elephants, and it lives on krill: up to 3,600 kg of it a day.\n"
)


def fixed_prompts(vocab_size: int, tokenizer: Tokenizer | None) -> list[list[int]]:
    """Returns the prompts of every check: arbitrary tokens, and a text where a tokenizer is known.

    The same for every model with that vocabulary; each longer than 64 tokens.
    """
    generator = torch.Generator().manual_seed(20231)
    known = min(vocab_size, vocab_size if tokenizer is None else tokenizer.vocab_size)
    prompts = [torch.randint(known, (_RANDOM_TOKENS,), generator=generator).tolist()]
    if tokenizer is not None:
        try:
            ids = tokenizer.encode(_TEXT)
        except DataError:
            # A vocabulary of characters may lack some of these.
            return prompts
        prompts.append((ids * -(-_RANDOM_TOKENS // len(ids)))[:_TEXT_TOKENS])
    return prompts


def own_model(
    weights: Mapping[str, Tensor],
    config: ResolvedModel,
    dtype: torch.dtype,
    states: Mapping[str, Tensor] | None = None,
) -> RWKV:
    """Returns our network with these weights, in evaluation mode on the CPU.

    The plain loop over tokens, which needs no compiled kernel and is what the others are held to.
    """
    # Of shapes alone until the weights take their places: no second copy of a large model.
    with torch.device("meta"):
        model = build_model(config, wkv_backend="reference", train_states=bool(states))
    tensors = {key: value.to(dtype) for key, value in {**weights, **(states or {})}.items()}
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def logits_at_once(model: RWKV, tokens: list[int]) -> Tensor:
    """Returns the logits [T, V] after every token, read in one call."""
    logits: Tensor = model(torch.tensor([tokens]))[0]
    return logits[0]


@torch.no_grad()
def logits_one_by_one(model: RWKV, tokens: list[int]) -> Tensor:
    """Returns the logits [T, V] after every token, read one a call with the state carried."""
    state, rows = None, []
    for token in tokens:
        logits, state = model(torch.tensor([[token]]), state)
        rows.append(logits[0, 0])
    return torch.stack(rows)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Returns the largest difference divided by the largest value of the reference; inf for NaN."""
    error = (found.double() - reference.double()).abs().max() / reference.double().abs().max()
    return float(error) if bool(error.isfinite()) else float("inf")
