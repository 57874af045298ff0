"""Openings of an answer: what is put into the model's mouth, and where its answer begins.

The G1 models think in front of an answer: `<think>...</think>`. They are made to by an answer that
begins so, and kept from it by one that begins with an empty thought; the last character is left to
the model, as it was trained. Functions are called by an answer that begins as a block of JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_train.errors import ConfigError


@dataclass(frozen=True)
class AnswerOpening:
    """The way an answer begins.

    text: behind the template's own beginning.  thought_end: what ends the thought in the model's
    part; "": there is none.  request: added to the user's message.  stop: a text that ends the
    answer and is part of it.  values: sampling that suits it, in place of the usual values.
    """

    text: str = ""
    thought_end: str = ""
    request: str = ""
    stop: str = ""
    values: tuple[tuple[str, float], ...] = ()

    def visible(self, written: str) -> str:
        """Returns the answer in what the model has written; "" while it thinks."""
        if not self.thought_end:
            return self.text + written if self.stop else written
        return written.partition(self.thought_end)[2].lstrip("\n")


_CAREFUL = (
    ("temperature", 0.3),
    ("top_p", 0.3),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
)
_END = "</think>"
# By the words of --think and /think.
THINKING = {
    "off": AnswerOpening(),
    "on": AnswerOpening(" <think", _END, values=_CAREFUL),
    "a bit": AnswerOpening(" <think", _END, " (think a bit)", values=_CAREFUL),
    "a lot": AnswerOpening(" <think", _END, " (think a lot)", values=_CAREFUL),
    "empty": AnswerOpening(" <think>\n</think", ">"),
}
CALL = AnswerOpening(" ```json", stop="\n```")


def thinking(words: str) -> AnswerOpening:
    """Returns the way to begin that has this name; ConfigError for others."""
    name = " ".join(words.split())
    if name not in THINKING:
        raise ConfigError(f"think {name!r}: expected {', '.join(THINKING)}")
    return THINKING[name]
