"""Copies of states on a partner machine, most often in its memory: sent there through the store.

Rank zero sends, the first rank of the next machine keeps. Both work in threads of their own, over
connections of their own, and meet nowhere with the collective calls of training. There is no more
of a state on its way than two chunks.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from torch.distributed.distributed_c10d import Store

from rwkv_train.checkpoint.copy_files import CopyAbandonedError
from rwkv_train.checkpoint.resume import StateFile
from rwkv_train.checkpoint.state_place import StatePlace
from rwkv_train.checkpoint.state_stream import StateChunks, write_streamed
from rwkv_train.errors import CheckpointError, TrainerError
from rwkv_train.training.distributed.file_transfer import CHUNK_BYTES

# Silence of the other side after which a copy fails, and the time that verifying it may take.
SILENCE_SECONDS = 120.0
VERIFY_SECONDS = 3600.0
# Between two looks for the next state, and for the next chunk.
_IDLE_SECONDS = 0.2
_BUSY_SECONDS = 0.002
_READY, _OVER = "ready", "over"


class PartnerPlace:
    """A place on the partner machine, as the `Copier` of rank zero sees it."""

    def __init__(self, folder: Path, every_steps: int | None, store: Store) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.newest: StateFile | None = None
        self._store = store
        self._number = 0

    def claim(self) -> None:
        """Waits until the partner keeps the place; raises CheckpointError when it cannot."""
        self._wait(_READY, SILENCE_SECONDS, lambda: True)
        fault = self._store.get(_READY).decode()
        if fault:
            raise CheckpointError(f"the partner machine: {fault}")

    def copy(self, state: StateFile, beside: Sequence[Path], go_on: Callable[[], bool]) -> None:
        """Sends a state; returns once the partner has it under its name, verified.

        beside: stays here, as the partner is asked for states alone. Raises CheckpointError or
        CopyAbandonedError.
        """
        self._number += 1
        number = self._number
        try:
            chunks = StateChunks(state.path, CHUNK_BYTES)
        except OSError as error:
            raise CheckpointError(f"cannot read {state.path}: {error.strerror}") from error
        try:
            self._send(number, state, chunks, go_on)
            self._wait(f"{number}/end", VERIFY_SECONDS, go_on)
            fault = self._store.get(f"{number}/end").decode()
        except RuntimeError as error:
            raise CheckpointError("the partner machine cannot be reached") from error
        finally:
            chunks.close()
            # Else the partner would wait for what never comes.
            with suppress(RuntimeError):
                self._store.set(f"{number}/left", "1")
        if fault:
            raise CheckpointError(f"the partner machine: {fault}")
        self.newest = state

    def release(self) -> None:
        """Tells the partner that nothing more comes."""
        with suppress(RuntimeError):
            self._store.set(_OVER, "1")

    def _send(
        self, number: int, state: StateFile, chunks: StateChunks, go_on: Callable[[], bool]
    ) -> None:
        head = {
            "name": state.path.name,
            "position": state.position,
            "step": state.step,
            "digest": state.digest,
            "run": state.run,
            "sizes": chunks.sizes,
        }
        self._store.set(f"{number}/head", json.dumps(head))
        for i, chunk in enumerate(chunks):
            if i >= 2:
                self._wait(f"{number}/taken/{i - 2}", SILENCE_SECONDS, go_on, f"{number}/end")
                if self._store.check([f"{number}/end"]):
                    # A fault over there: it says which.
                    return
                _forget_key(self._store, f"{number}/taken/{i - 2}")
            self._store.set(f"{number}/chunk/{i}", chunk)  # type: ignore[arg-type]  # bytes too

    def _wait(self, key: str, seconds: float, go_on: Callable[[], bool], other: str = "") -> None:
        keys = [key, other] if other else [key]
        if not _wait_for_any(self._store, keys, seconds, go_on):
            if not go_on():
                raise CopyAbandonedError
            raise CheckpointError(f"the partner machine has not answered for {seconds:g} s")


class PartnerKeeper:
    """Takes what rank zero sends into `place`, until rank zero says that it is over."""

    def __init__(self, place: StatePlace, store: Store) -> None:
        self._place = place
        self._store = store
        self._is_left = False
        # A daemon, as in `Copier`.
        self._thread = threading.Thread(target=self._work, name="partner", daemon=True)
        self._thread.start()

    def close(self, limit_seconds: float) -> None:
        """Returns once rank zero has nothing more to send, at the latest after the limit."""
        self._thread.join(limit_seconds)
        self.abandon()

    def abandon(self) -> None:
        """Ends at once; what is complete stays."""
        self._is_left = True
        self._thread.join(5.0)

    def _work(self) -> None:
        # The store goes with rank zero.
        with suppress(RuntimeError):
            self._store.set(_READY, self._fault_of(self._place.claim))
            number = 1
            while _wait_for_any(self._store, [f"{number}/head", _OVER], None, self._goes_on):
                if not self._store.check([f"{number}/head"]):
                    break
                self._store.set(f"{number}/end", self._take_next(number))
                number += 1
        self._fault_of(self._place.release)

    def _take_next(self, number: int) -> str:
        """Takes the state of this number; returns why it could not, "" when it could."""
        head = json.loads(self._store.get(f"{number}/head"))
        path = self._place.folder / head["name"]
        state = StateFile(path, head["position"], head["step"], "", head["digest"], head["run"])
        sizes, chunks = head["sizes"], self._chunks(number)

        def take() -> None:
            self._place.claim()
            self._place.require_room(path, sum(sizes.values()))
            self._place.take(
                state, lambda target: write_streamed(target, sizes, chunks, state.digest)
            )

        return self._fault_of(take)

    def _chunks(self, number: int) -> Iterator[bytes]:
        i = 0
        while True:
            key, left = f"{number}/chunk/{i}", f"{number}/left"
            _wait_for_any(self._store, [key, left], SILENCE_SECONDS, self._goes_on)
            if not self._store.check([key]):
                raise CheckpointError("rank 0 has not sent all of it")
            chunk: bytes = self._store.get(key)
            _forget_key(self._store, key)
            self._store.set(f"{number}/taken/{i}", "1")
            yield chunk
            i += 1

    def _fault_of(self, call: Callable[[], None]) -> str:
        """Returns why a call failed, "" when it did not; a store that is gone is no fault of it."""
        try:
            call()
        except TrainerError as error:
            return error.in_one_line()
        except RuntimeError:
            raise
        # Anything: the other side waits for an answer.
        except Exception as error:
            return repr(error)
        return ""

    def _goes_on(self) -> bool:
        return not self._is_left


def _wait_for_any(
    store: Store, keys: Sequence[str], seconds: float | None, go_on: Callable[[], bool]
) -> bool:
    """Returns True once one of the keys is there, False after so many seconds or when left.

    Without a limit it looks rarely.
    """
    began = time.monotonic()
    while not any(store.check([key]) for key in keys):
        if not go_on() or (seconds is not None and time.monotonic() - began > seconds):
            return False
        time.sleep(_IDLE_SECONDS if seconds is None else _BUSY_SECONDS)
    return True


def _forget_key(store: Store, key: str) -> None:
    # A store that cannot is one of a test, and loses nothing but memory.
    with suppress(RuntimeError):
        store.delete_key(key)
