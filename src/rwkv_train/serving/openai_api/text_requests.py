"""Requests for text, as they come in: conversations to answer, texts to continue."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rwkv_train.errors import ConfigError
from rwkv_train.inference.chat.answer_openings import AnswerOpening, thinking
from rwkv_train.inference.sampling import Sampler, SamplingOptions, sequence_generator
from rwkv_train.inference.writing import TextWriter
from rwkv_train.serving.batching.batch_jobs import TextJob
from rwkv_train.serving.batching.job_events import Receive
from rwkv_train.serving.openai_api.api_errors import RequestError
from rwkv_train.serving.openai_api.chat_prompts import ChatPrompt, chat_prompt
from rwkv_train.serving.openai_api.prompt_tokens import check_lengths, check_model, token_lists
from rwkv_train.serving.openai_api.request_fields import RequestFields
from rwkv_train.serving.served_model import (
    CHAT_SAMPLING,
    TEXT_SAMPLING,
    ServedModel,
    sampling_options,
)

_MOST_STOPS = 4
_MOST_LIKELIEST = 20
# OpenAI's words for how much to think, in ours.
_EFFORTS = {"none": "off", "minimal": "empty", "low": "a bit", "medium": "on", "high": "a lot"}


@dataclass(frozen=True)
class TextRequest:
    """Texts that are asked for.

    prompts: tokens.  choices: texts for each.  likeliest: tokens to tell the chances of beside
    those that are drawn; None: no chances.  opening: how answers begin; None: no conversation.
    turn: as `TextJob`.  goes_on: the prompt ends within an answer.
    """

    prompts: list[list[int]]
    choices: int
    sampling: SamplingOptions
    seed: int
    max_tokens: int
    stop: tuple[str, ...]
    likeliest: int | None
    stream: bool
    include_usage: bool
    opening: AnswerOpening | None = None
    turn: int = 0
    goes_on: bool = False

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        return sum(map(len, self.prompts))

    def jobs(self, model: ServedModel, receive: Receive) -> list[TextJob]:
        """Returns the work, a job a prompt."""
        return [self._job(model, number, receive) for number in range(len(self.prompts))]

    def _job(self, model: ServedModel, number: int, receive: Receive) -> TextJob:
        prompt = self.prompts[number]
        first = number * self.choices
        writers = [
            TextWriter(
                model.tokenizer,
                Sampler(self.sampling, sequence_generator(self.seed, index)),
                max_tokens=self.max_tokens,
                stop=self.stop,
                stop_behind=self.opening.thought_end if self.opening else "",
                last_tokens=prompt[-16:],
            )
            for index in range(first, first + self.choices)
        ]
        return TextJob(
            prompt, writers, receive, turn=self.turn, first_choice=first, likeliest=self.likeliest
        )


def chat_request(model: ServedModel, body: Mapping[str, Any]) -> TextRequest:
    """Returns what a body of /v1/chat/completions asks for; RequestError for a wrong one."""
    fields = RequestFields(body)
    check_model(fields, model)
    think = _way_of_thinking(fields, model)
    messages = fields.take("messages")
    prompt = chat_prompt(
        model, messages, think, tools=fields.take("tools"), tool_choice=fields.take("tool_choice")
    )
    opening = prompt.opening
    after = model.template.answer_role.after
    ends = (opening.stop,) if opening.stop else (after.rstrip() or after,) if after else ()
    likeliest = fields.integer("top_logprobs", None, lowest=0, highest=_MOST_LIKELIEST)
    if fields.flag("logprobs"):
        likeliest = likeliest or 0
    elif likeliest is not None:
        raise RequestError("'top_logprobs' needs 'logprobs': true", param="top_logprobs")
    newer = fields.integer("max_completion_tokens", None, lowest=1, highest=2**31)
    default = model.limits.answer_tokens if newer is None else newer
    for name, *allowed in (
        ("modalities", ["text"]),
        ("response_format", {"type": "text"}),
        ("functions", []),
        ("function_call", "none"),
        ("parallel_tool_calls", True),
        ("audio",),
        ("prediction",),
        ("web_search_options",),
        ("verbosity", "medium"),
    ):
        fields.only(name, *allowed)
    usual = {**CHAT_SAMPLING, **dict(opening.values)}
    kind = _Kind(usual, "top_p", default, ends, likeliest, chat=prompt)
    return _text_request(fields, model, [prompt.tokens], kind)


def completion_request(model: ServedModel, body: Mapping[str, Any]) -> TextRequest:
    """Returns what a body of /v1/completions asks for; RequestError for a wrong one."""
    fields = RequestFields(body)
    check_model(fields, model)
    prompts = token_lists(fields, "prompt", model, default="")
    likeliest = fields.integer("logprobs", None, lowest=0, highest=_MOST_LIKELIEST)
    fields.only("echo", False)
    fields.only("suffix", "")
    fields.only("best_of", fields.take("n", 1))
    # OpenAI's own default.
    most = min(16, model.limits.answer_tokens)
    return _text_request(
        fields, model, prompts, _Kind(TEXT_SAMPLING, "temperature", most, (), likeliest)
    )


@dataclass(frozen=True)
class _Kind:
    """Differences of conversations and plain texts.

    sampling, order, max_tokens: where nothing is said.  ends: texts that always end an answer.
    """

    sampling: Mapping[str, float]
    order: str
    max_tokens: int
    ends: tuple[str, ...]
    likeliest: int | None
    chat: ChatPrompt | None = None


def _text_request(
    fields: RequestFields, model: ServedModel, prompts: list[list[int]], kind: _Kind
) -> TextRequest:
    limits = model.limits
    most = fields.integer("max_tokens", kind.max_tokens, lowest=1, highest=2**31)
    assert most is not None, "there is a default"
    if most > limits.answer_tokens:
        raise RequestError(
            f"{most} tokens are asked for; this server writes at most {limits.answer_tokens}",
            param="max_tokens",
        )
    choices = fields.integer("n", 1, lowest=1, highest=limits.places) or 1
    if choices * len(prompts) > limits.places:
        raise RequestError(
            f"{choices * len(prompts)} texts are asked for; this server writes at most "
            f"{limits.places} at the same time",
            param="n",
        )
    seed = fields.integer("seed", None, lowest=-(2**63), highest=2**63 - 1)
    stream = fields.flag("stream")
    request = TextRequest(
        prompts=prompts,
        choices=choices,
        sampling=_sampling(fields, model, kind),
        seed=secrets.randbits(63) if seed is None else seed,
        max_tokens=most,
        stop=(*kind.ends, *_stops(fields)),
        likeliest=kind.likeliest,
        stream=stream,
        include_usage=_include_usage(fields, stream),
        opening=kind.chat.opening if kind.chat else None,
        turn=kind.chat.turn if kind.chat else 0,
        goes_on=kind.chat is not None and kind.chat.goes_on,
    )
    fields.only("logit_bias", {})
    fields.ignore("user", "metadata", "store", "service_tier", "safety_identifier")
    fields.ignore("prompt_cache_key", "prompt_cache_retention")
    fields.refuse_others()
    check_lengths(prompts, model, "messages" if kind.chat else "prompt")
    return request


def _sampling(fields: RequestFields, model: ServedModel, kind: _Kind) -> SamplingOptions:
    given: dict[str, float] = {}
    for name in TEXT_SAMPLING:
        if name == "top_k":
            value: float | None = fields.integer(name, None, lowest=0, highest=2**31)
        else:
            value = fields.number(name)
        if value is not None:
            given[name] = value
    try:
        return sampling_options(model, kind.order, kind.sampling, model.sampling, given)
    except ConfigError as error:
        message = str(error).removeprefix("--")
        raise RequestError(message, param=message.partition(" ")[0]) from error


def _stops(fields: RequestFields) -> tuple[str, ...]:
    value = fields.take("stop", [])
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise RequestError("'stop' must be a string or a list of strings", param="stop")
    if len(stops) > _MOST_STOPS or not all(stops):
        raise RequestError(f"'stop' must be up to {_MOST_STOPS} texts, none empty", param="stop")
    return tuple(stops)


def _include_usage(fields: RequestFields, stream: bool) -> bool:
    value = fields.take("stream_options")
    if value is None:
        return False
    if not stream or not isinstance(value, dict):
        raise RequestError(
            "'stream_options' must be an object, beside 'stream': true", param="stream_options"
        )
    options = RequestFields(value)
    included = options.flag("include_usage")
    options.ignore("include_obfuscation")
    options.refuse_others()
    return included


def _way_of_thinking(fields: RequestFields, model: ServedModel) -> AnswerOpening:
    effort = fields.text("reasoning_effort")
    if effort is not None:
        effort = fields.choice("reasoning_effort", _EFFORTS, effort)
    words = fields.text("think", _EFFORTS[effort] if effort else model.think)
    try:
        return thinking(words or "off")
    except ConfigError as error:
        raise RequestError(str(error), param="think") from error
