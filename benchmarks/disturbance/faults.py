"""Kinds of faults: each strikes a job once, and some are mended after a while."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.disturbance.scene import Scene
from rwkv_train.report.run_lives import LIVES_FILE
from rwkv_train.report.run_records import METRICS_FILE, TIMES_FILE

Mend = Callable[[], None]
# How long a fault is waited for that must meet a certain moment.
_MOMENT_SECONDS = 10.0


class Struck(NamedTuple):
    """What a fault has done: whether the job must restart, and how and when it is mended.

    seconds: until `mend` is called.
    """

    restarts: bool
    mend: Mend | None = None
    seconds: float = 0.0


class Kind(NamedTuple):
    """A kind of fault. weight: how often it comes, beside the others. needs: "", network, disk."""

    strike: Callable[[Scene], Struck]
    weight: float
    needs: str = ""


def kill_rank(scene: Scene) -> Struck:
    """Kills one worker."""
    scene.job.strike(scene.any_worker(), signal.SIGKILL)
    return Struck(restarts=True)


def kill_host(scene: Scene) -> Struck:
    """Kills agent and workers of a host at once, as if its power had failed."""
    scene.job.strike_host(scene.any_host())
    return Struck(restarts=True)


def kill_agent(scene: Scene) -> Struck:
    """Kills the agent of a host, which leaves workers without one."""
    agent = scene.job.agent(scene.any_host())
    scene.job.strike([agent] if agent else [], signal.SIGKILL)
    return Struck(restarts=True)


def kill_in_save(scene: Scene) -> Struck:
    """Kills the whole first host while a file is being written, or after a while without one."""
    deadline = time.monotonic() + _MOMENT_SECONDS
    while time.monotonic() < deadline and not any(scene.run.glob("*.partial")):
        time.sleep(0.0005)
    scene.job.strike_host(0)
    return Struck(restarts=True)


def stop_rank(scene: Scene) -> Struck:
    """Stops one worker for ever: it holds its connections and answers nothing."""
    scene.job.strike(scene.any_worker(), signal.SIGSTOP)
    return Struck(restarts=True)


def pause_rank(scene: Scene) -> Struck:
    """Stops one worker for a second."""
    worker = scene.any_worker()
    scene.job.strike(worker, signal.SIGSTOP)
    return Struck(False, lambda: scene.job.strike(worker, signal.SIGCONT), 1.0)


def pause_agent(scene: Scene) -> Struck:
    """Stops the agent of a host for two seconds; its workers go on."""
    agent = scene.job.agent(scene.any_host())
    agents = [agent] if agent else []
    scene.job.strike(agents, signal.SIGSTOP)
    return Struck(False, lambda: scene.job.strike(agents, signal.SIGCONT), 2.0)


def preempt_rank(scene: Scene) -> Struck:
    """Asks one worker to leave: the run saves, and leaves as a whole."""
    scene.job.strike(scene.any_worker(), signal.SIGTERM)
    return Struck(restarts=True)


def preempt_host(scene: Scene) -> Struck:
    """Asks the agent of a host to leave, which asks its workers."""
    agent = scene.job.agent(scene.any_host())
    scene.job.strike([agent] if agent else [], signal.SIGTERM)
    return Struck(restarts=True)


def drop_link(scene: Scene) -> Struck:
    """Cuts a host off for a second, shorter than anybody calls it lost."""
    host = scene.any_host()
    scene.network.cut(host)
    return Struck(False, lambda: scene.network.heal(host), 1.0)


def cut_off(scene: Scene) -> Struck:
    """Cuts a host off until the others call it lost, and it the others."""
    host = scene.any_host()
    scene.network.cut(host)
    return Struck(True, lambda: scene.network.heal(host), 12.0)


def fill_disk(scene: Scene) -> Struck:
    """Fills the disk of the run for some seconds: neither states nor records can be written."""
    scene.blackouts.append(scene.steps_done())
    scene.disk.fill()
    return Struck(False, scene.disk.free, 4.0)


def corrupt_state(scene: Scene) -> Struck:
    """Changes bytes in the middle of the newest state, then kills a worker."""

    def flip(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            old = file.read(64)
            file.seek(-len(old), os.SEEK_CUR)
            file.write(bytes(byte ^ 0xFF for byte in old))

    return _with_newest_state(scene, flip)


def truncate_state(scene: Scene) -> Struck:
    """Cuts the newest state in the middle, then kills a worker."""
    return _with_newest_state(scene, lambda path: os.truncate(path, path.stat().st_size // 2))


def delete_state(scene: Scene) -> Struck:
    """Deletes the newest state, or a part of it, then kills a worker."""
    return _with_newest_state(scene, Path.unlink)


def damage_log(scene: Scene) -> Struck:
    """Destroys a line in each file of records, then kills a worker."""
    for name in (METRICS_FILE, TIMES_FILE, LIVES_FILE):
        with suppress(FileNotFoundError):
            scene.damage_line(name)
    return kill_rank(scene)


def _with_newest_state(scene: Scene, damage: Callable[[Path], None]) -> Struck:
    for path in scene.states()[-1:]:
        parts = sorted(part for part in path.rglob("*") if part.is_file())
        # It may be deleted this moment, since newer ones are there.
        with suppress(FileNotFoundError):
            damage(scene.rng.choice(parts) if path.is_dir() else path)
    return kill_rank(scene)


KINDS = {
    "kill_rank": Kind(kill_rank, 2),
    "kill_host": Kind(kill_host, 1),
    "kill_agent": Kind(kill_agent, 1),
    "kill_in_save": Kind(kill_in_save, 1),
    "stop_rank": Kind(stop_rank, 0.5),
    "pause_rank": Kind(pause_rank, 2),
    "pause_agent": Kind(pause_agent, 1),
    "preempt_rank": Kind(preempt_rank, 1),
    "preempt_host": Kind(preempt_host, 1),
    "drop_link": Kind(drop_link, 2, "network"),
    "cut_off": Kind(cut_off, 0.5, "network"),
    "fill_disk": Kind(fill_disk, 1, "disk"),
    "corrupt_state": Kind(corrupt_state, 1),
    "truncate_state": Kind(truncate_state, 1),
    "delete_state": Kind(delete_state, 1),
    "damage_log": Kind(damage_log, 1),
}
