"""Requests for vectors of texts, and the answers to them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rwkv_train.serving.openai_api.api_errors import RequestError
from rwkv_train.serving.openai_api.prompt_tokens import check_lengths, check_model, token_lists
from rwkv_train.serving.openai_api.request_fields import RequestFields
from rwkv_train.serving.served_model import ServedModel

_MOST_TEXTS = 2048


@dataclass(frozen=True)
class EmbeddingRequest:
    """Vectors that are asked for.

    texts: tokens.  as_base64: written as the bytes of little-endian fp32, not as numbers.
    """

    texts: list[list[int]]
    as_base64: bool

    def body(self, vectors: Sequence[Tensor], model: ServedModel) -> dict[str, Any]:
        """Returns the answer; vectors: [C] of every text."""
        tokens = sum(map(len, self.texts))
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": self._written(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": model.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def _written(self, vector: Tensor) -> str | list[float]:
        if self.as_base64:
            return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
        return [float(value) for value in vector]


def embedding_request(model: ServedModel, body: Mapping[str, Any]) -> EmbeddingRequest:
    """Returns what a body of /v1/embeddings asks for; RequestError for a wrong one."""
    fields = RequestFields(body)
    check_model(fields, model)
    texts = token_lists(fields, "input", model)
    if len(texts) > _MOST_TEXTS:
        raise RequestError(
            f"'input' has {len(texts)} texts; at most {_MOST_TEXTS} go into one request",
            param="input",
        )
    written = fields.choice("encoding_format", ("float", "base64"), "float")
    fields.only("dimensions", model.width)
    fields.ignore("user")
    fields.refuse_others()
    check_lengths(texts, model, "input")
    return EmbeddingRequest(texts, written == "base64")
