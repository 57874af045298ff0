"""Text from tokens that come one at a time."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_train.data.tokenize.tokenizer import Tokenizer

# Decoders show it for bytes that are not, or not yet, a character.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
# Tokens decoded together: some decoders treat the first one in a special way (a space is dropped),
# so a token alone does not tell its text.
CONTEXT = 16
# Every token decodes the window anew, so the cost of a token grows with this bound.
LONGEST = 64


class TextStream:
    """Gives out whole characters as soon as the tokens of one are complete.

    All pieces together are what `tokenizer.decode` gives for all tokens after the prompt.
    prompt: the tokens before.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = list(prompt[-CONTEXT:])
        self._given = len(tokenizer.decode(self._window))
        self._pending = False

    @property
    def is_pending(self) -> bool:
        """True while the last token ends within a character."""
        return self._pending

    def add(self, token: int) -> str:
        """Returns the text that `token` makes certain; often its own, sometimes none."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        certain = text.rstrip(INCOMPLETE)
        piece = certain[self._given :]
        self._given += len(piece)
        self._pending = certain != text
        # Cut only between characters, or the bytes of one would be decoded without its start.
        if len(self._window) > LONGEST and not self._pending:
            self._window = self._window[-CONTEXT:]
            self._given = len(self._tokenizer.decode(self._window))
        return piece

    def finish(self) -> str:
        """Returns what remains when no token follows: bytes that never became a character."""
        piece = self._tokenizer.decode(self._window)[self._given :]
        self._given += len(piece)
        return piece
