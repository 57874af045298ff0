"""Copies saved states to their second places, in a thread that training never waits for."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rwkv_train.checkpoint.copy_files import CopyAbandonedError
from rwkv_train.checkpoint.resume import StateFile, list_states
from rwkv_train.errors import TrainerError

# A wait at the end that is longer than this is announced.
_ANNOUNCED_AFTER_SECONDS = 2.0
_ABANDON_SECONDS = 5.0


class CopyTarget(Protocol):
    """A place that states are copied to, see `StatePlace`."""

    folder: Path
    every_steps: int | None
    newest: StateFile | None

    def claim(self) -> None:
        """Takes the place for this run. Raises TrainerError."""
        ...

    def copy(self, state: StateFile, beside: Sequence[Path], go_on: Callable[[], bool]) -> None:
        """Copies a state. Raises TrainerError or CopyAbandonedError."""
        ...

    def release(self) -> None:
        """Gives the place back."""
        ...


class Copier:
    """Copies the newest state to every place, one copy at a time, until it is closed.

    beside: gives, for a state, the files that belong beside its copy.
    A place that fails is a warning, once for each cause; the next state is tried there again.
    """

    def __init__(
        self, places: Sequence[CopyTarget], beside: Callable[[Path], Sequence[Path]]
    ) -> None:
        self._places = places
        self._beside = beside
        self._changed = threading.Condition()
        self._newest: Path | None = None
        self._is_pending = self._is_closing = self._is_abandoned = False
        self._said_skipped = False
        self._wants_all = any(place.every_steps is None for place in places)
        self._told: dict[Path, set[str]] = {}
        self._doing = ""
        # A daemon: a disk that does not answer any more must not keep the process.
        self._thread = threading.Thread(target=self._work, name="copies", daemon=True)
        self._thread.start()

    def offer(self, state: Path) -> None:
        """Takes note of a state that is complete; one that waits to be copied gives way to it."""
        with self._changed:
            skips = self._is_pending and self._newest != state and self._wants_all
            if skips and not self._said_skipped:
                self._said_skipped = True
                _say(
                    f"copies take longer than the time between saves: {self._newest} is not "
                    "copied, the newest is; such are passed over from now on without a word"
                )
            self._newest, self._is_pending = state, True
            self._changed.notify()

    def close(self, limit_seconds: float) -> None:
        """Returns once every place has the newest state, at the latest after the limit; says so.

        Gives the places back.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(min(_ANNOUNCED_AFTER_SECONDS, limit_seconds))
        if not self._thread.is_alive():
            return
        print(
            f"waiting for the last copies{self._doing}, at most {limit_seconds / 60:g} minutes "
            "(--copies_wait_minutes) ...",
            file=sys.stderr,
            flush=True,
        )
        self._thread.join(max(0.0, limit_seconds - _ANNOUNCED_AFTER_SECONDS))
        if self._thread.is_alive():
            _say(
                f"the last copies were not complete within {limit_seconds / 60:g} minutes: left"
                f"{self._doing}; {self._newest} is complete, and the next start copies it"
            )
            self.abandon()

    def abandon(self) -> None:
        """Ends at once; a copy that is under way leaves nothing behind."""
        with self._changed:
            self._is_abandoned = True
            self._changed.notify()
        self._thread.join(_ABANDON_SECONDS)

    def _work(self) -> None:
        try:
            self._copy_all()
        except CopyAbandonedError:
            pass
        finally:
            for place in self._places:
                self._attempt(place, place.release)

    def _copy_all(self) -> None:
        for place in self._places:
            # At once: another run with the same place is refused from now on.
            self._attempt(place, place.claim)
        while True:
            with self._changed:
                while not (self._is_pending or self._is_closing or self._is_abandoned):
                    self._changed.wait()
                is_last, self._is_pending = self._is_closing, False
            for place in self._places:
                if not self._goes_on():
                    return
                self._copy_newest_to(place, is_last)
            if is_last:
                return

    def _copy_newest_to(self, place: CopyTarget, is_last: bool) -> None:
        # By now perhaps a newer one than the place before got.
        path = self._newest
        state = None if path is None else _described(path)
        if state is None or not _is_due(place, state, is_last):
            return
        self._doing = f", {state.path.name} to {place.folder}"
        self._attempt(place, lambda: self._copy(place, state, is_last))
        self._doing = ""
        if place.newest == state and self._told.pop(place.folder, set()):
            _say(f"copies in {place.folder} work again", kind="note")

    def _copy(self, place: CopyTarget, state: StateFile, is_last: bool) -> None:
        try:
            place.copy(state, self._beside(state.path), self._goes_on)
        except TrainerError:
            found = _described(state.path)
            if is_last or (found is not None and found.digest == state.digest):
                raise
            # Superseded meanwhile, which is no fault of the place: a newer one is about to come.

    def _attempt(self, place: CopyTarget, call: Callable[[], None]) -> None:
        """Calls something of a place; a fault there is told once for each cause."""
        folder = place.folder
        try:
            call()
        except CopyAbandonedError:
            raise
        # Anything: a second copy is no reason to end a run, nor to end the others.
        except Exception as error:
            fault = error.in_one_line() if isinstance(error, TrainerError) else repr(error)
            # The same cause has other numbers the next time.
            cause = re.sub(r"[\d.,]+", "", fault)
            told = self._told.setdefault(folder, set())
            if cause not in told:
                told.add(cause)
                _say(f"no copy in {folder}: {fault}. The run goes on; the next state tries again")

    def _goes_on(self) -> bool:
        return not self._is_abandoned


def _described(path: Path) -> StateFile | None:
    """Returns what a state says of itself; None when it has gone or cannot be read."""
    found = [state for state in list_states(path.parent) if state.path == path]
    return found[0] if found and found[0].position is not None else None


def _is_due(place: CopyTarget, state: StateFile, is_last: bool) -> bool:
    """Tells whether a place is to get a state: the last in any case, unless it has it."""
    newest, every = place.newest, place.every_steps
    if newest is not None and newest.digest == state.digest:
        return False
    if is_last or newest is None or every is None:
        return True
    # Also when the run went back to an earlier state.
    return abs(state.step - newest.step) >= every


def _say(text: str, kind: str = "WARNING") -> None:
    print(f"\n{kind}: {text}", file=sys.stderr, flush=True)
