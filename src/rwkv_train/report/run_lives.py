"""proj_dir/lives.jsonl: what the wall time of a run went into beside its steps, over all lives.

A life is a start of the program. Each leaves a line when it knows where it resumes, one before its
first step, and one when it ends; a life that is killed leaves no last line. A line holds sums since
the first life, so that the newest line that can be read is enough. What steps took stands in
metrics.jsonl alone: with the lines of steps that a resumed run drops there their time changes from
what it was to `lost`. What is between the last second that is accounted for and the next start is
told by nobody, and comes out as the difference: all parts together are always the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_train.goodput import (
    PARTS,
    add_seconds,
    ending_seconds,
    no_seconds,
    seconds_beside_steps,
    step_seconds,
)
from rwkv_train.report.run_records import METRICS_FILE, objects_in, read_steps, read_times

LIVES_FILE = "lives.jsonl"
# A difference of sums of numbers as large as a date.
_ROUNDING_SECONDS = 1e-3


class StartFacts(NamedTuple):
    """The facts that a life knows when it begins; times are seconds since the epoch.

    tokens: read where it resumes. left_at: the last sign of life of the one before, None: unknown.
    supervised_since: when the launcher began that has started this life, None: there is none.
    """

    tokens: int
    began: float
    left_at: float | None = None
    supervised_since: float | None = None


@dataclass
class LifeAccount:
    """The wall time of a run by what it went into, from the beginning of its first life to `until`.

    Times are seconds since the epoch. beside: seconds by part that no step's record holds. steps:
    those that the records of steps hold. tokens: of the last line. stepping: its life takes steps.
    """

    began: float
    until: float
    lives: int = 0
    tokens: int = 0
    lost_steps: int = 0
    stepping: bool = False
    beside: dict[str, float] = field(default_factory=no_seconds)
    steps: dict[str, float] = field(default_factory=no_seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part; together they are those from `began` to `until`."""
        return {part: spent + self.steps[part] for part, spent in self.beside.items()}

    def spend(self, part: str, seconds: float) -> None:
        """Accounts for the next so many seconds; a clock that was set back gives none."""
        seconds = max(0.0, seconds)
        self.beside[part] += seconds
        self.until += seconds

    def begin_steps(self, start_up_seconds: float, reload_seconds: float) -> None:
        """Accounts for a start, of which a part was reading the state."""
        self.spend("reload", min(reload_seconds, start_up_seconds))
        self.spend("restart", start_up_seconds - reload_seconds)
        self.stepping = True

    def add_step(self, record: Mapping[str, Any]) -> None:
        """Accounts for a step and what was between it and the one before."""
        found = step_seconds(record)
        add_seconds(self.steps, found)
        self.until += sum(found.values())

    def end_steps(self, record: Mapping[str, Any]) -> None:
        """Accounts for what a life did behind its last step, and leaves nothing to tell."""
        for part, seconds in ending_seconds(record).items():
            self.spend(part, seconds)
        self.stepping = False

    def line(self, event: str, tokens: int) -> dict[str, Any]:
        """Returns the record of lives.jsonl at this moment."""
        return {
            "life": self.lives,
            "event": event,
            "began": self.began,
            "until": self.until,
            "tokens": tokens,
            "lost_steps": self.lost_steps,
            "seconds": {part: spent for part, spent in self.beside.items() if spent},
        }


def read_lives(folder: Path) -> list[dict[str, Any]]:
    """Returns the records of a folder's lives.jsonl, in order; what cannot be read is left out."""
    return [record for record in objects_in(folder / LIVES_FILE) if _is_line(record)]


def last_account(folder: Path) -> LifeAccount | None:
    """Returns the account of a folder's newest line, without its steps; None: there is none."""
    lines = read_lives(folder)
    if not lines:
        return None
    last = lines[-1]
    account = LifeAccount(last["began"], last["until"], last["life"], last["tokens"])
    account.lost_steps, account.stepping = last["lost_steps"], last["event"] == "steps"
    add_seconds(account.beside, last["seconds"])
    return account


def begin_life(folder: Path, facts: StartFacts) -> LifeAccount:
    """Returns the account of a run whose next life begins, up to this beginning.

    To be called before the records of what is done again are dropped from metrics.jsonl.
    """
    account = last_account(folder) or _older_account(folder, facts)
    steps = read_steps(folder)
    # Where the last life had not come to a step, lines behind its beginning are of one before it,
    # which it was about to drop: they have been counted as lost.
    known = max(account.tokens, facts.tokens)
    told = [step for step in steps if account.stepping or _tokens(step) <= known]
    kept = [step for step in steps if _tokens(step) <= facts.tokens]
    dropped = [step for step in told if _tokens(step) > facts.tokens]
    account.until += _total(step for step in told if _tokens(step) > account.tokens)
    pause = _pause_of_state(dropped, kept, facts)
    account.beside["lost"] += _total(dropped) - pause
    account.beside["save"] += pause
    account.lost_steps += len(dropped)
    for step in kept:
        add_seconds(account.steps, step_seconds(step))
    _settle(account)
    _account_for_gap(account, facts)
    account.lives, account.tokens, account.stepping = account.lives + 1, facts.tokens, False
    return account


def _pause_of_state(
    dropped: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]], facts: StartFacts
) -> float:
    """Returns the seconds of the save that a life resumes from.

    They stand in the record of the step behind it, which is done again.
    """
    if not dropped or not kept or _tokens(kept[-1]) != facts.tokens:
        return 0.0
    return step_seconds(dropped[0]).get("save", 0.0)


def _account_for_gap(account: LifeAccount, facts: StartFacts) -> None:
    """Accounts for the time between the last record and the beginning of a life."""
    died = account.until
    if facts.left_at is not None:
        # It lived, and what it did was not written down: the beginning of a step, or of a start.
        part = "broken" if account.stepping else "restart"
        account.spend(part, min(facts.left_at, facts.began) - account.until)
        died = account.until
    waited = facts.supervised_since is not None and facts.supervised_since <= died
    account.spend("restart" if waited else "down", facts.began - account.until)


def _settle(account: LifeAccount) -> None:
    """Makes the parts add up where records of steps were damaged, or written twice."""
    missing = account.until - account.began - sum(account.seconds.values())
    if missing > _ROUNDING_SECONDS:
        account.beside["untold"] += missing
    elif missing < -_ROUNDING_SECONDS:
        account.until -= missing


def _older_account(folder: Path, facts: StartFacts) -> LifeAccount:
    """Returns the account of a run that has kept none, from times.jsonl: gaps are not told."""
    times, steps = read_times(folder), read_steps(folder)
    beside = no_seconds()
    for record in times:
        add_seconds(beside, seconds_beside_steps(record))
    until = facts.began
    if steps:
        until = min(until, (folder / METRICS_FILE).stat().st_mtime)
    began = until - sum(beside.values()) - _total(steps)
    lives = sum("start_up_seconds" in record for record in times)
    # All of its steps are behind nothing: they have been taken off already.
    tokens = max((_tokens(step) for step in steps), default=0)
    return LifeAccount(began, until, lives, tokens, stepping=True, beside=beside)


def _tokens(step: Mapping[str, Any]) -> int:
    return int(step.get("tokens", 0))


def _total(steps: Iterable[Mapping[str, Any]]) -> float:
    return sum(sum(step_seconds(step).values()) for step in steps)


def _is_line(record: Mapping[str, Any]) -> bool:
    """Tells whether somebody's edit has left a line what it was."""
    names = ("life", "began", "until", "tokens", "lost_steps")
    seconds = record.get("seconds")
    if not isinstance(seconds, dict) or not seconds.keys() <= PARTS.keys():
        return False
    numbers = [*(record.get(name) for name in names), *seconds.values()]
    return all(type(value) in (int, float) and isfinite(value) for value in numbers)
