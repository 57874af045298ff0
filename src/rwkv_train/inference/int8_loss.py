"""Rounding a model's weights to int8, and what it costs in accuracy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.errors import DataError
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.int8 import round_to_int8

MEASURED_TEXT = (
    "The harbour was quiet when the last ferry came in. Two fishermen were mending a net on the "
    'quay, and a girl asked them how far it was to the lighthouse. "An hour on foot," said the '
    'older one, "if you start before the tide turns; after that you will have to wait until '
    'morning." She thanked them, counted her coins, and walked on past the empty warehouses.'
)


class Int8Loss(NamedTuple):
    """The change that rounding made on a short text.

    difference: of the logits, relative, root mean square.
    loss, loss_before: mean cross entropy of the text's tokens, in nats.
    """

    tokens: int
    difference: float
    loss: float
    loss_before: float

    def __str__(self) -> str:
        return (
            f"int8 weights: on a text of {self.tokens} tokens the logits differ by "
            f"{100 * self.difference:.2g} %, and the loss is {self.loss:.4f} nats a token instead "
            f"of {self.loss_before:.4f}"
        )


@torch.no_grad()
def rounded_to_int8(model: RWKV, tokenizer: Tokenizer) -> Int8Loss:
    """Rounds the weights of `model` in place; returns what that changed."""
    tokens = torch.tensor([_tokens(tokenizer)])
    before, _ = model(tokens)
    round_to_int8(model)
    after, _ = model(tokens)
    before, after = before.float(), after.float()
    difference = (after - before).norm() / before.norm()
    return Int8Loss(tokens.shape[1], float(difference), _loss(after, tokens), _loss(before, tokens))


def _loss(logits: Tensor, tokens: Tensor) -> float:
    return float(F.cross_entropy(logits[0, :-1], tokens[0, 1:]))


def _tokens(tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.encode(MEASURED_TEXT)
    except DataError:
        # A vocabulary of another script; its loss on its own tokens in a row says less.
        return list(range(min(100, tokenizer.vocab_size)))
