"""A tiny model whose answers are given by the test, and what it has read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rwkv_train.data.chat.template import WORLD, ChatTemplate
from rwkv_train.data.tokenize.tokenizer import BytesTokenizer, Tokenizer
from rwkv_train.inference.chat.answer_openings import AnswerOpening
from rwkv_train.inference.chat.conversation import Conversation
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.engine.sequence_state import state_tensors
from tests.helpers import assert_close
from tests.models.tiny import tiny_model

BYTES = BytesTokenizer()
PLAIN = AnswerOpening()


class Recited:
    """Stands in for a Sampler: gives the tokens it was given, and keeps the logits it saw."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)
        self.logits: list[torch.Tensor] = []

    def draw(self, logits: torch.Tensor) -> int:
        self.logits.append(logits)
        return next(self._tokens)


def tiny_engine(tokenizer: Tokenizer = BYTES) -> Engine:
    """An RWKV-7 in fp64 with a row for every token."""
    return Engine(tiny_model("7", vocab_size=tokenizer.vocab_size, n_embd=32).double())


class ScriptedChat:
    """A conversation with a model that answers as it is told to."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer = BYTES,
        template: ChatTemplate = WORLD,
        system: str = "",
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.talk = Conversation(engine, tokenizer, template, system)

    def reply(
        self, answer: str | Sequence[int], opening: AnswerOpening = PLAIN, max_tokens: int = 999
    ) -> tuple[str, Recited]:
        """Returns what is shown of an answer that the model writes, and what it drew from."""
        tokens = self.tokenizer.encode(answer) if isinstance(answer, str) else answer
        recited = Recited(tokens)
        return "".join(self.talk.answer(recited, opening, max_tokens=max_tokens)), recited

    def assert_state_is_that_of(self, tokens: Sequence[int]) -> None:
        """Fails unless the model is where reading these tokens would have taken it."""
        found = self.talk.behind()
        assert found is not None and found.state.position == len(tokens)
        logits, (expected,) = self.engine.prefill([tokens])
        assert_close("logits", found.logits, logits[0], 1e-9)
        tensors = state_tensors(found.state.alone())
        for name, value in state_tensors(expected.alone()).items():
            assert_close(name, tensors[name], value, 1e-9)
