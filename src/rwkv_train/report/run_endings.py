"""Tells how every start of a run has ended, and which machines it called slow: for its page.

lives.jsonl has a line when a start has ended, with why if something else than its work ended it. A
start that was killed leaves none: what it had done is known from the next, which drops it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_train.report.page_blocks import (
    PagePart,
    known_number,
    page_table,
    section,
    shown_seconds,
    shown_value,
)
from rwkv_train.report.run_lives import read_lives
from rwkv_train.report.step_bins import thinned

BY_ITSELF, RUNNING = "by itself", "not ended: it runs, or was killed since"
KILLED = "not told: it was killed, or its machine was lost"
_UNEXPLAINED = "ended by a fault that it did not tell"
_MOST_ROWS = 100
_MOST_CHARACTERS = 600
# What passes between the end of a start and the first step of the next.
_AWAY = ("down", "restart", "reload")
_LAST_EVENTS = ("end", "left")
Line = Mapping[str, Any]


class Ending(NamedTuple):
    """The end of one start, a life of the run.

    until: its last second that is known, since the epoch; step: steps done by then, None: unknown;
    is_fault: it has not ended by itself. lost_steps: that the next start did again; away_seconds:
    until that one's first step; None: there is none.
    """

    life: int
    until: float
    step: int | None
    tokens: int
    words: str
    is_fault: bool
    lost_steps: int | None
    away_seconds: float | None


def read_endings(folder: Path, tokens_per_step: float) -> list[Ending]:
    """Returns the endings of a folder's run in order, the newest start's last."""
    lives: dict[int, list[Line]] = defaultdict(list)
    for line in read_lives(folder):
        lives[int(line["life"])].append(line)
    numbers = sorted(lives)
    following = [*(lives[number] for number in numbers[1:]), None]
    return [
        _ending(n, lives[n][-1], after, tokens_per_step) for n, after in zip(numbers, following)
    ]


def ending_marks(endings: Sequence[Ending], most: int) -> list[PagePart]:
    """Returns the marks of starts that a fault has ended, at most so many, evenly spread."""
    found = [e for e in endings if e.is_fault and e.step is not None]
    return [
        {
            "step": found[i].step,
            "tokens": found[i].tokens,
            "kind": "fault",
            "text": f"ended: {_cut(found[i].words, 200)}",
        }
        for i in thinned(len(found), most)
    ]


def fault_section(endings: Sequence[Ending], slow: Sequence[Line]) -> PagePart | None:
    """Returns the ends of all starts and the slow machines; None where there is nothing to tell.

    slow: records of metrics.jsonl.
    """
    told = [e for e in endings if e.words != RUNNING]
    blocks = []
    if any(e.is_fault for e in told) or len(endings) > 1:
        shown = [told[i] for i in thinned(len(told), _MOST_ROWS)]
        columns = ["start", "ended", "after step", "how", "steps done again", "until the next step"]
        note = "" if len(shown) == len(told) else f"{len(shown)} of {len(told):,}, evenly spread."
        blocks.append(page_table("How each start ended", columns, _rows(shown), note=note))
    if slow:
        rows = [
            [r["step"] + 1, _cut(slow_words(r) or "none any more", _MOST_CHARACTERS)]
            for r in (slow[i] for i in thinned(len(slow), _MOST_ROWS))
        ]
        blocks.append(page_table("Slow machines", ["after step", "slow from here on"], rows))
    return section("faults", "Faults and slow machines", blocks) if blocks else None


def slow_words(record: Line) -> str:
    """Returns which machines are slow from a record on; "" when none is any more."""
    slow = record.get("slow")
    return "; ".join(map(str, slow)) if isinstance(slow, list) else ""


def _rows(endings: Iterable[Ending]) -> list[list[Any]]:
    return [
        [
            e.life,
            datetime.fromtimestamp(e.until, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
            shown_value(e.step),
            _cut(e.words, _MOST_CHARACTERS),
            shown_value(e.lost_steps),
            "–" if e.away_seconds is None else shown_seconds(e.away_seconds),
        ]
        for e in endings
    ]


def _ending(life: int, last: Line, after: Sequence[Line] | None, tokens_per_step: float) -> Ending:
    """Returns how a life ended, from its last line and those of the next life."""
    words, is_fault = _how(last, after is None)
    step, tokens = known_number(last.get("step")), int(last["tokens"])
    if after is None:
        where = None if step is None else int(step)
        return Ending(life, last["until"], where, tokens, words, is_fault, None, None)
    begins = after[0]
    lost = int(begins["lost_steps"] - last["lost_steps"])
    ended = last["until"]
    if last.get("event") not in _LAST_EVENTS:
        # It has not said how far it had come, nor when it ended.
        resumed = known_number(begins.get("step"))
        step = None if resumed is None else resumed + lost
        tokens = int(begins["tokens"] + lost * tokens_per_step)
        ended = begins["until"] - _passed("down", last, begins)
    ready = next((line for line in after if line.get("event") == "steps"), after[-1])
    return Ending(
        life,
        ended,
        None if step is None else int(step),
        tokens,
        words,
        is_fault,
        lost,
        max(0.0, sum(_passed(part, last, ready) for part in _AWAY)),
    )


def _how(last: Line, is_newest: bool) -> tuple[str, bool]:
    fault = last.get("fault")
    if isinstance(fault, str) and fault:
        status = known_number(last.get("status"))
        return (fault if status is None else f"{fault} (status {status})"), True
    if last.get("event") == "end":
        return BY_ITSELF, False
    if last.get("event") == "left":
        return _UNEXPLAINED, True
    return (RUNNING, False) if is_newest else (KILLED, True)


def _passed(part: str, last: Line, later: Line) -> float:
    """Returns the seconds of a part between two lines."""
    return float(later["seconds"].get(part, 0.0) - last["seconds"].get(part, 0.0))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + " …"
