"""One save: its attempts, in a thread of their own, and what became of them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rwkv_train.errors import CheckpointError, TrainerError, TrainingError

# Attempts of one save; after the last failure the run stops.
ATTEMPTS = 3


class NotFiniteError(CheckpointError):
    """Raised by a save instead of writing NaN or infinity."""


def failed_for_good(cause: str) -> TrainingError:
    """Returns what a run ends with whose save has failed at every attempt."""
    return TrainingError(
        f"saving failed {ATTEMPTS} times in a row: {cause}. The same command resumes from the last "
        "save once the cause is gone"
    )


class SaveSteps(NamedTuple):
    """The calls of a save: `write` until it succeeds, `give_up` with the fault after the last."""

    write: Callable[[], None]
    give_up: Callable[[TrainerError], None] = lambda fault: None


class SaveJob:
    """Calls `write` until it succeeds, at most three times.

    path: what it writes, for messages. fault: why the last attempt failed, once there is no
    further one; is_refused: because there is nothing worth writing, which no pause changes.
    Failures are printed on stderr as they happen.
    """

    def __init__(self, path: Path, steps: SaveSteps, retry_seconds: float) -> None:
        self.path = path
        self.fault: TrainerError | None = None
        self.is_refused = False
        self._steps = steps
        self._retry_seconds = retry_seconds
        self._skip_backoff = threading.Event()
        # Not a daemon: a run that ends by an error waits until its last save is on disk.
        self._thread = threading.Thread(target=self._run, name="save")
        self._thread.start()

    @property
    def is_finished(self) -> bool:
        """True once the save has succeeded or failed for good."""
        return not self._thread.is_alive()

    def wait(self, seconds: float | None = None, *, skip_backoff: bool = False) -> bool:
        """Returns once the save is finished, or after so many seconds; tells whether it is.

        skip_backoff: without pauses between its attempts.
        """
        if skip_backoff:
            self._skip_backoff.set()
        self._thread.join(seconds)
        return self.is_finished

    def _run(self) -> None:
        self._attempt()
        if self.fault is not None:
            self._steps.give_up(self.fault)

    def _attempt(self) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._steps.write()
                return
            except NotFiniteError as error:
                self.fault, self.is_refused = error, True
                print(f"\nWARNING: {error.in_one_line()}", file=sys.stderr, flush=True)
                return
            except TrainingError as error:
                # The folder is another run's now, or another rank has failed for good.
                self.fault = error
                return
            except CheckpointError as error:
                fault = error
            # Anything: an exception that ended the thread would be a save that nobody misses.
            except Exception as error:
                fault = CheckpointError(f"cannot write {self.path}: {error!r}")
            if attempt < ATTEMPTS:
                # A pause gives people time to make room.
                print(
                    f"\nWARNING: save {attempt} of {ATTEMPTS} failed: {fault.in_one_line()}; "
                    f"trying again in {self._retry_seconds:g} s",
                    file=sys.stderr,
                    flush=True,
                )
                self._skip_backoff.wait(self._retry_seconds)
        self.fault = fault
