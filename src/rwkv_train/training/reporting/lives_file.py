"""proj_dir/lives.jsonl: where the wall time of a run goes, over all of its lives."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from rwkv_train.report.run_lives import LIVES_FILE, LifeAccount, StartFacts, begin_life
from rwkv_train.training.progress import Progress
from rwkv_train.training.reporting.records import EndRecord, FaultRecord, StartRecord, StepRecord
from rwkv_train.training.reporting.reporter import Reporter, warn_lost


def open_account(folder: Path, facts: StartFacts) -> LifeAccount:
    """Returns the account of a folder's run up to a start with these facts.

    One that begins here, after a line on why, where the records before cannot be read.
    """
    try:
        return begin_life(folder, facts)
    # Goodput is no reason to refuse a run.
    except OSError as error:
        warn_lost(LIVES_FILE, error)
        return LifeAccount(facts.began, facts.began, lives=1)


class LivesFile(Reporter):
    """Appends a line when a life begins, before its first step, and when it ends.

    step: steps done when it begins.
    """

    def __init__(self, folder: Path, account: LifeAccount, step: int = 0) -> None:
        self._path = folder / LIVES_FILE
        self._account = account
        self._tokens, self._step = account.tokens, step
        self._ended = False
        # The part of what a fault breaks off.
        self._unfinished = "restart"
        self._owed = ""
        try:
            self._write("start")
        except OSError as error:
            warn_lost(LIVES_FILE, error)
            self.has_failed = True

    def on_start(self, record: StartRecord) -> None:
        """Writes what the start took."""
        self._unfinished = "lost"
        self._write("steps")

    def on_step(self, record: StepRecord, progress: Progress) -> None:
        """Keeps how far its steps have come, whose records tell the rest.

        Writes what a full disk has not taken before.
        """
        self._tokens, self._step = record.tokens, record.step + 1
        if self._owed:
            self._write("steps")

    def on_end(self, record: EndRecord) -> None:
        """Writes what came behind the last step."""
        self._unfinished = "ending"
        self._ended, self._tokens, self._step = True, record.tokens, record.step + 1
        self._write("end")

    def close(self) -> None:
        """Writes when a life ended that something has ended, if it did not end by itself."""
        if not self._ended:
            self._leave()

    def on_fault(self, record: FaultRecord) -> None:
        """Writes why this life ends, also where `close` has told before that it does."""
        self._leave(**asdict(record))

    def _leave(self, **why: object) -> None:
        self._account.spend(self._unfinished, time.time() - self._account.until)
        self._account.stepping = False
        self._write("left", **why)

    def _write(self, event: str, **why: object) -> None:
        self._owed = event
        told = {**self._account.line(event, self._tokens), "step": self._step, **why}
        line = json.dumps(told) + "\n"
        # A few times a life: not worth an open file.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
        self._owed = ""
