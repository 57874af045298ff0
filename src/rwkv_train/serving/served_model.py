"""A loaded model as it is served: its name, what it may be asked for, how it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rwkv_train.data.chat.template import ChatTemplate
from rwkv_train.data.tokenize.tokenizer import Tokenizer
from rwkv_train.inference.sampling import SamplingOptions
from rwkv_train.serving.batching.text_reader import Pooling

CHAT_SAMPLING: dict[str, float] = {
    "temperature": 1.0,
    "top_p": 0.5,
    "top_k": 0,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.2,
    "penalty_decay": 0.996,
}
TEXT_SAMPLING: dict[str, float] = {
    "temperature": 1.0,
    "top_p": 0.7,
    "top_k": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "penalty_decay": 0.996,
}


@dataclass(frozen=True)
class ServingLimits:
    """The most that is done for anybody.

    places: texts that are written at the same time.  queue: jobs that may wait for a place.
    prompt_tokens, answer_tokens: of one text.  body_bytes: of a request.  body_seconds: for a
    request to arrive.  request_seconds: for its answer, waiting included.
    """

    places: int = 32
    queue: int = 128
    prompt_tokens: int = 32768
    answer_tokens: int = 4096
    body_bytes: int = 4 << 20
    body_seconds: float = 20.0
    request_seconds: float = 600.0


@dataclass(frozen=True)
class ServedModel:
    """The model's side of all requests.

    sampling: what the command line says of it, by name.  order: as `SamplingOptions`.
    fingerprint: of the weights.  created: when it was loaded, seconds of the epoch.
    width: numbers of a vector.
    """

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    width: int
    fingerprint: str
    created: int
    limits: ServingLimits = field(default_factory=ServingLimits)
    sampling: Mapping[str, float] = field(default_factory=dict)
    order: str | None = None
    think: str = "off"
    pooling: Pooling = "mean"


def sampling_options(
    model: ServedModel, order: str, *values: Mapping[str, float]
) -> SamplingOptions:
    """Returns the sampling; of several values of one name the last counts.

    order: where the command line says none.  Raises ConfigError for numbers out of range.
    """
    numbers: dict[str, Any] = {}
    for some in values:
        numbers.update(some)
    return SamplingOptions(**numbers, order=model.order or order)  # type: ignore[arg-type]
