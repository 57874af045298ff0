"""Texts as OpenAI's objects, whole ones and those of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rwkv_train.serving.batching.job_events import Ended, TokenChance, Wrote
from rwkv_train.serving.openai_api.answer_parts import AnswerParts, Delta, joined
from rwkv_train.serving.openai_api.text_requests import TextRequest
from rwkv_train.serving.served_model import ServedModel


@dataclass
class UsedTokens:
    """Counts of a request's tokens; cached: of the prompt, those whose state was known."""

    prompt: int
    cached: int = 0
    written: int = 0

    def body(self) -> dict[str, Any]:
        """Returns OpenAI's object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.written,
            "total_tokens": self.prompt + self.written,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass
class _Choice:
    """A text so far, for an answer that is given as a whole."""

    delta: Delta = field(default_factory=dict)
    chances: list[TokenChance] = field(default_factory=list)
    finish: str | None = None


class AnswerBodies:
    """The objects in which one request is answered."""

    def __init__(self, model: ServedModel, request: TextRequest) -> None:
        self._model = model
        self._request = request
        self._chat = request.opening is not None
        kind = "chat.completion" if self._chat else "text_completion"
        self._kinds = kind, f"{kind}.chunk" if self._chat else kind
        prefix = "chatcmpl" if self._chat else "cmpl"
        self._id = f"{prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        count = len(request.prompts) * request.choices
        self._parts = [self._new_parts() for _ in range(count)]
        self._choices = [_Choice() for _ in range(count)]
        self.usage = UsedTokens(request.prompt_tokens)

    def opening(self) -> Iterator[dict[str, Any]]:
        """Yields what a stream begins with."""
        if self._chat:
            for index in range(len(self._choices)):
                yield self._chunk(index, {"role": "assistant", "content": ""})

    def chunks(self, event: Wrote | Ended) -> Iterator[dict[str, Any]]:
        """Yields what a stream tells of an event."""
        delta, chances, finish = self._taken(event)
        if delta or chances or finish is not None:
            yield self._chunk(event.choice, delta, chances, finish)

    def usage_chunk(self) -> dict[str, Any]:
        """Returns the last object of a stream that was asked to count."""
        return {**self._around(self._kinds[1]), "choices": [], "usage": self.usage.body()}

    def add(self, event: Wrote | Ended) -> None:
        """Takes an event into the whole answer."""
        delta, chances, finish = self._taken(event)
        choice = self._choices[event.choice]
        choice.delta = joined(choice.delta, delta)
        choice.chances += chances
        choice.finish = finish or choice.finish

    def whole(self) -> dict[str, Any]:
        """Returns the whole answer."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        return {**self._around(self._kinds[0]), "choices": choices, "usage": self.usage.body()}

    def _new_parts(self) -> AnswerParts | None:
        opening = self._request.opening
        if opening is None:
            return None
        return AnswerParts(self._model.template, opening, goes_on=self._request.goes_on)

    def _taken(self, event: Wrote | Ended) -> tuple[Delta, Sequence[TokenChance], str | None]:
        parts = self._parts[event.choice]
        if isinstance(event, Wrote):
            delta = {"content": event.text} if parts is None else parts.add(event.text)
            return {k: v for k, v in delta.items() if v}, event.chances, None
        self.usage.written += event.tokens
        if parts is None:
            return {}, (), "length" if event.reason == "length" else "stop"
        delta, finish = parts.end(event.reason, event.stop)
        return delta, (), finish

    def _chunk(
        self,
        index: int,
        delta: Delta,
        chances: Sequence[TokenChance] = (),
        finish: str | None = None,
    ) -> dict[str, Any]:
        said = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        choice = {"index": index, **said, "logprobs": self._logprobs(chances)}
        usage = {"usage": None} if self._request.include_usage else {}
        return {
            **self._around(self._kinds[1]),
            "choices": [{**choice, "finish_reason": finish}],
            **usage,
        }

    def _whole_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        content = choice.delta.get("content")
        if not self._chat:
            said: dict[str, Any] = {"text": content or ""}
        else:
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if "tool_calls" in choice.delta:
                calls = choice.delta["tool_calls"]
                message["tool_calls"] = [
                    {k: v for k, v in c.items() if k != "index"} for c in calls
                ]
            else:
                message["content"] = content or ""
            if "reasoning_content" in choice.delta:
                message["reasoning_content"] = choice.delta["reasoning_content"]
            said = {"message": message}
        logprobs = self._logprobs(choice.chances, whole=True)
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": choice.finish}

    def _around(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": self._model.fingerprint,
        }

    def _logprobs(
        self, chances: Sequence[TokenChance], *, whole: bool = False
    ) -> dict[str, Any] | None:
        if self._request.likeliest is None or not (chances or whole):
            return None
        if self._chat:
            return {"content": [self._told(chance) for chance in chances], "refusal": None}
        return {
            "tokens": [self._text(chance.token) for chance in chances],
            "token_logprobs": [chance.logprob for chance in chances],
            "top_logprobs": [
                {self._text(token): value for token, value in chance.likeliest}
                for chance in chances
            ],
        }

    def _told(self, chance: TokenChance) -> dict[str, Any]:
        others = [self._token(token, value) for token, value in chance.likeliest]
        return {**self._token(chance.token, chance.logprob), "top_logprobs": others}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        content = self._content(token)
        text = content.decode(errors="replace")
        return {"token": text, "logprob": logprob, "bytes": list(content)}

    def _text(self, token: int) -> str:
        return self._content(token).decode(errors="replace")

    def _content(self, token: int) -> bytes:
        tokenizer = self._model.tokenizer
        # Rows of the head beyond the tokenizer's tokens stand for no text.
        return tokenizer.decode_bytes([token]) if token < tokenizer.vocab_size else b""
