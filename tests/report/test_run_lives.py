"""Every second of a run's life is accounted for once, wherever a life was killed.

A clock that is moved by hand plays lives whose events take known times; what each second was is
noted beside, by other means than the account's.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rwkv_train.goodput import no_seconds
from rwkv_train.report.life_times import life_seconds
from rwkv_train.report.run_history import RunHistory
from rwkv_train.report.run_lives import (
    LIVES_FILE,
    LifeAccount,
    StartFacts,
    begin_life,
    last_account,
    read_lives,
)
from rwkv_train.report.run_records import METRICS_FILE, TIMES_FILE, read_metrics
from tests.report.made_runs import step_record

TOKENS = 2048
SAVE_EVERY = 3
BEGAN = 1_796_029_200.0
# Of one life: until it is known where to resume, the rest of the start, reading in it.
EARLY, START_UP, RELOAD = 5.0, 11.0, 2.0
# Of a step: computing, and waiting for other ranks, for data; of a save behind every third.
COMPUTING, RANKS, DATA, SAVING = 7.0, 2.0, 1.0, 4.0


class KilledError(Exception):
    """The life ends here, and writes nothing more."""


class Player:
    """Plays lives of one run; notes: (part, step or None, seconds), the truth about its time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = BEGAN
        self.saved = 0
        self.notes: list[tuple[str, int | None, float]] = []
        self._left = 0

    def pass_time(self, part: str, seconds: float, step: int | None = None) -> None:
        self.now += seconds
        self.notes.append((part, step, seconds))

    def event(self) -> None:
        """A moment at which a life may be killed."""
        if self._left == 0:
            raise KilledError
        self._left -= 1

    def live(self, events: int, resume: int, *, left_at: float | None, agent: float | None) -> None:
        """A life that is killed after so many events, resumed after `resume` steps."""
        self._left = events
        began = self.now
        account = begin_life(self.folder, StartFacts(resume * TOKENS, began, left_at, agent))
        assert sum(account.seconds.values()) == pytest.approx(account.until - account.began)
        # What the steps behind it had taken is lost now.
        self.lose_steps(resume)
        try:
            self.write(LIVES_FILE, account.line("start", account.tokens))
            self.event()
            kept = [r for r in read_metrics(self.folder) if r["tokens"] <= account.tokens]
            text = "".join(json.dumps(record) + "\n" for record in kept)
            (self.folder / METRICS_FILE).write_text(text)
            self.event()
            self.play(account, resume)
        except KilledError:
            pass

    def lose_steps(self, resume: int) -> None:
        for number, (part, step, seconds) in enumerate(self.notes):
            if step is not None and step >= resume:
                # The pause that stands in the first of them has made the state.
                is_kept = part == "save" and step == resume
                self.notes[number] = ("save" if is_kept else "lost", None, seconds)

    def play(self, account: LifeAccount, resume: int) -> None:
        account.begin_steps(START_UP, RELOAD)
        self.pass_time("reload", RELOAD)
        self.pass_time("restart", START_UP - RELOAD)
        self.write(LIVES_FILE, account.line("steps", account.tokens))
        step, pause = resume, 0.0
        while True:
            self.event()
            seconds = pause + COMPUTING + RANKS + DATA
            shares = {"communication": RANKS, "data": DATA, "save": pause}
            record = step_record(step, seconds=seconds, validation_share=0.0)
            record |= {f"{name}_share": part / seconds for name, part in shares.items()}
            for part, spent in ({"training": COMPUTING} | shares).items():
                self.pass_time(part, spent, step)
            account.add_step(record)
            self.write(METRICS_FILE, record)
            assert account.until == pytest.approx(self.now)
            step, pause = step + 1, 0.0
            if step % SAVE_EVERY == 0:
                self.event()
                self.saved, pause = step, SAVING

    def write(self, name: str, record: dict[str, object]) -> None:
        with (self.folder / name).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def truth(self) -> dict[str, float]:
        found = no_seconds()
        for part, _, seconds in self.notes:
            found[part] += seconds
        return found


def finish(player: Player) -> LifeAccount:
    return begin_life(player.folder, StartFacts(player.saved * TOKENS, player.now))


@pytest.mark.parametrize("first", range(12))
@pytest.mark.parametrize("second", range(12))
def test_a_run_that_is_killed_at_any_two_points_adds_up(first: int, second: int, tmp_path: Path):
    player = Player(tmp_path)
    player.live(first, 0, left_at=None, agent=None)
    player.pass_time("down", 100.0)
    player.live(second, player.saved, left_at=None, agent=None)
    player.pass_time("restart", 30.0)
    player.live(7, player.saved, left_at=None, agent=BEGAN)
    # Back to an older state than the newest: steps of several lives are lost.
    player.saved = max(0, player.saved - SAVE_EVERY)
    player.pass_time("down", 10.0)
    player.live(9, player.saved, left_at=None, agent=None)
    account = finish(player)
    player.lose_steps(player.saved)
    assert account.seconds == pytest.approx(player.truth())
    assert sum(account.seconds.values()) == pytest.approx(player.now - BEGAN)
    assert account.lives == 5


def test_the_last_sign_of_life_tells_a_hang_from_a_time_when_nobody_ran(tmp_path: Path):
    player = Player(tmp_path)
    # Two events of the start, and five that begin a step: the last one dies in the fifth.
    player.live(6, 0, left_at=None, agent=None)
    hung = player.now
    player.pass_time("broken", 40.0)
    player.pass_time("restart", 10.0)
    player.live(1, player.saved, left_at=hung + 40.0, agent=BEGAN)
    # Killed on its way to the first step, of which a sign of life tells a part.
    player.pass_time("restart", 8.0)
    player.pass_time("down", 50.0)
    player.live(4, player.saved, left_at=player.now - 50.0, agent=player.now - 1.0)
    account = finish(player)
    player.lose_steps(player.saved)
    assert account.seconds == pytest.approx(player.truth())


def test_damaged_records_leave_time_untold_and_the_sum_whole(tmp_path: Path):
    player = Player(tmp_path)
    player.live(9, 0, left_at=None, agent=None)
    player.live(6, player.saved, left_at=None, agent=None)
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    (tmp_path / METRICS_FILE).write_text("\n".join([lines[0], "{torn", *lines[2:]]) + "\n")
    account = finish(player)
    assert account.seconds["untold"] == pytest.approx(COMPUTING + RANKS + DATA)
    assert sum(account.seconds.values()) == pytest.approx(player.now - BEGAN)


def test_a_clock_that_is_set_back_takes_nothing_from_any_part(tmp_path: Path):
    player = Player(tmp_path)
    player.live(5, 0, left_at=None, agent=None)
    player.now -= 1000.0
    account = finish(player)
    assert min(account.seconds.values()) == 0
    assert sum(account.seconds.values()) == pytest.approx(account.until - account.began)


@pytest.mark.parametrize(
    "line", ["{}", '{"life": "1"}', "[1]", "torn", '{"life":1,"began":NaN,"until":1,"tokens":0}']
)
def test_lines_that_are_none_are_passed_over(line: str, tmp_path: Path):
    player = Player(tmp_path)
    player.live(5, 0, left_at=None, agent=None)
    before = read_lives(tmp_path)
    with (tmp_path / LIVES_FILE).open("a") as file:
        file.write(line + "\n")
    assert read_lives(tmp_path) == before and len(before) == 2


def test_a_run_that_has_kept_no_account_begins_with_what_its_starts_tell(tmp_path: Path):
    records = [
        {"step": 0, "tokens": 0, "start_up_seconds": 10.0, "lost_seconds": 3.0},
        {"step": 0, "tokens": TOKENS, "ending_seconds": 4.0, "save_share": 0.5},
    ]
    (tmp_path / TIMES_FILE).write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / METRICS_FILE).write_text(json.dumps(step_record(0, seconds=20.0)) + "\n")
    began = (tmp_path / METRICS_FILE).stat().st_mtime + 60.0
    account = begin_life(tmp_path, StartFacts(TOKENS, began))
    expected = {"training": 20, "restart": 10, "lost": 3, "save": 2, "ending": 2, "down": 60}
    assert account.seconds == pytest.approx({**no_seconds(), **expected})
    assert account.lives == 2


def test_the_report_has_the_same_seconds(tmp_path: Path):
    player = Player(tmp_path)
    player.live(9, 0, left_at=None, agent=None)
    player.pass_time("down", 100.0)
    player.live(9, player.saved, left_at=None, agent=None)
    history = RunHistory(tmp_path)
    history.update()
    assert life_seconds(history) == pytest.approx(player.truth())
    account = last_account(tmp_path)
    assert account is not None and account.lost_steps == 3
