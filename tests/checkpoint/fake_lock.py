"""A lock of a folder that tests lose and refuse."""

from __future__ import annotations

from rwkv_train.errors import ConfigError


class Lock:
    """A lock that can be lost."""

    def __init__(self) -> None:
        self.owned, self.taken = False, 0
        self.refusal: ConfigError | None = None

    def acquire(self) -> None:
        """Takes the folder."""
        if self.refusal is not None:
            raise self.refusal
        self.owned, self.taken = True, self.taken + 1

    def is_owned(self) -> bool:
        """Tells whether it is held."""
        return self.owned

    def release(self) -> None:
        """Gives it back."""
        self.owned = False
