"""Texts that end an answer, found in pieces of it as they come."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Lets a text through up to the first of some texts, and holds back what may begin one.

    stops: none may be empty.  found: the one that has come; None: none yet.
    behind: a text, such as the end of a thought, up to which, and up to the first letter behind it,
    stop texts do not count; "": they count at once.
    """

    def __init__(self, stops: Sequence[str] = (), *, behind: str = "") -> None:
        assert all(stops), "a stop text has at least one character"
        self._stops = tuple(stops)
        self._behind = behind
        # What has come of the text that is waited for, None once a letter has followed it.
        self._waiting: str | None = "" if behind else None
        self.held = ""
        self.found: str | None = None

    def add(self, piece: str) -> str:
        """Returns what `piece` makes certain to lie before every stop text."""
        free = self._before_the_watch(piece)
        return free + self._watched(piece[len(free) :])

    def _before_the_watch(self, piece: str) -> str:
        """Returns the part of `piece` in which stop texts do not count."""
        if self._waiting is None:
            return ""
        seen = self._waiting + piece
        _, found, after = seen.partition(self._behind)
        letters = after.lstrip()
        if not letters:
            # Of a long thought only the end, with which the text may begin; or the text itself.
            self._waiting = self._behind if found else seen[-len(self._behind) :]
            return piece
        self._waiting = None
        return piece[: len(piece) - len(letters)]

    def _watched(self, piece: str) -> str:
        text = self.held + piece
        places = [(text.find(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if places:
            # The one that begins first; of those the longest.
            at, _, self.found = min(places)
            self.held = ""
            return text[:at]
        held = self._beginning_in(text)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """Returns what was held back, when nothing follows it."""
        text, self.held = self.held, ""
        return text

    def _beginning_in(self, text: str) -> int:
        """Returns how many characters at the end may be the beginning of a stop text."""
        longest = max(map(len, self._stops), default=0)
        for count in range(min(len(text), longest - 1), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
