"""The texts of a request as tokens, and whether they are for this model and short enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rwkv_train.data.text.jsonl import kind_of
from rwkv_train.data.tokenize.tokenizer import END_OF_DOCUMENT
from rwkv_train.errors import DataError
from rwkv_train.serving.openai_api.api_errors import RequestError
from rwkv_train.serving.openai_api.request_fields import RequestFields
from rwkv_train.serving.served_model import ServedModel


def check_model(fields: RequestFields, model: ServedModel) -> None:
    """Raises RequestError for a request to another model."""
    wanted = fields.text("model", model.name)
    if wanted != model.name:
        raise RequestError(
            f"the model {wanted!r:.100} is not served here, only {model.name!r}",
            status=404,
            param="model",
            code="model_not_found",
        )


def token_lists(
    fields: RequestFields, name: str, model: ServedModel, default: str | None = None
) -> list[list[int]]:
    """Returns the tokens of one text or several, given as strings or as tokens.

    An empty text stands for the start of a document.  Raises RequestError.
    """
    value = fields.take(name, default)
    if value is None:
        raise RequestError(f"'{name}' is missing", param=name)
    if isinstance(value, str) or (isinstance(value, list) and value and _is_token(value[0])):
        value = [value]
    if not isinstance(value, list) or not value:
        expected = "a text, a list of texts, or tokens"
        found = "an empty list" if value == [] else kind_of(value)
        raise RequestError(f"'{name}' must be {expected}, found {found}", param=name)
    return [_tokens(entry, name, model) for entry in value]


def _tokens(entry: Any, name: str, model: ServedModel) -> list[int]:
    if isinstance(entry, str):
        try:
            return model.tokenizer.encode(entry) or [END_OF_DOCUMENT]
        except DataError as error:
            raise RequestError(f"'{name}': {error}", param=name) from error
    if not isinstance(entry, list) or not all(map(_is_token, entry)):
        raise RequestError(f"'{name}' must hold texts, or lists of tokens", param=name)
    wrong = [token for token in entry if not 0 <= token < model.tokenizer.vocab_size]
    if wrong:
        raise RequestError(
            f"'{name}': {wrong[0]} is no token; they are 0 ... {model.tokenizer.vocab_size - 1}",
            param=name,
        )
    return entry or [END_OF_DOCUMENT]


def _is_token(value: Any) -> bool:
    return type(value) is int


def check_lengths(prompts: Sequence[Sequence[int]], model: ServedModel, name: str) -> None:
    """Raises RequestError for a text that is too long; name: the field that holds it."""
    longest = max(map(len, prompts))
    if longest > model.limits.prompt_tokens:
        raise RequestError(
            f"a text has {longest} tokens; this server reads at most {model.limits.prompt_tokens}",
            param=name,
            code="context_length_exceeded",
        )
