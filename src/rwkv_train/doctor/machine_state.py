"""Checks of the clock, and of variables that launchers and shells leave behind."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from rwkv_train.doctor.findings import Answers, Finding, fault, good, warning
from rwkv_train.errors import ConfigError
from rwkv_train.processors import visible_gpus
from rwkv_train.training.environment import variables
from rwkv_train.training.launchers.decide import decide

# A clock that shows an earlier day than the files of this program were made.
_CLOCK_SLACK_S = 86_400.0
_ZONES = (Path("/usr/share/zoneinfo"), Path("/usr/lib/zoneinfo"), Path("/usr/share/lib/zoneinfo"))
# Variables that slow every step, with the values that do so.
_SLOW = {
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for",
    "TORCH_DISTRIBUTED_DEBUG": "every collective is checked",
    "NCCL_P2P_DISABLE": "cards send through the host",
    "PYTHONMALLOC": "Python checks every allocation",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "every tensor is allocated anew",
}
_HARMLESS = ("", "0", "OFF", "INFO", "pymalloc")
# Variables that name a network interface, or several.
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check_clock(folder: Path) -> Answers:
    """Yields whether the time can be right, and whether the zone that is set exists."""
    now, made = time.time(), Path(__file__).stat().st_mtime
    remedy = "sudo chronyc makestep, or: sudo timedatectl set-ntp true"
    local = datetime.fromtimestamp(now).astimezone()
    if now < made - _CLOCK_SLACK_S:
        yield fault(
            f"it is {local:%Y-%m-%d %H:%M} here, before the files of this program were made: "
            "certificates and downloads fail, and the newest checkpoint is another one",
            remedy,
        )
        return
    zone = variables().get("TZ", "").lstrip(":")
    if zone and not _is_known(zone):
        yield warning(
            f"TZ={zone} names no time zone of this machine, which shows UTC instead",
            "unset TZ, or install tzdata",
        )
        return
    yield good(f"{local:%Y-%m-%d %H:%M} {local.tzname()}")


def _is_known(zone: str) -> bool:
    # Such as EST5EDT and <+03>-3, which are rules and no names.
    rule = re.fullmatch(r"(<[^>]+>|[A-Za-z]{3,})([+-]?\d.*)?", zone) and "/" not in zone
    return bool(rule) or any((place / zone).exists() for place in _ZONES) or Path(zone).is_file()


def check_variables(folder: Path) -> Answers:
    """Yields variables that make a run wait for others, refuse to start, or slow."""
    given = variables()
    found = [*_launch_findings(given), *_interface_findings(given)]
    for name, effect in _SLOW.items():
        if given.get(name, "") not in _HARMLESS:
            found.append(warning(f"{name}={given[name]}: {effect}, for debugging", f"unset {name}"))
    if visible_gpus() == []:
        found.append(warning("CUDA_VISIBLE_DEVICES hides all cards", "unset CUDA_VISIBLE_DEVICES"))
    yield from found
    if not found:
        yield good("none that says this process is one of several, or slows it")


def _launch_findings(given: Mapping[str, str]) -> list[Finding]:
    """Returns what a run would understand from the launchers' variables."""
    try:
        launch = decide(given, None, None)
    except ConfigError as error:
        told = error.in_one_line()
        left = re.findall(r"unset ([A-Z_]+(?: [A-Z_]+)*)", told)
        names = left[0] if left else "RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT NODE_RANK"
        return [fault(told, f"unset {names}")]
    if launch.world_size == 1:
        return []
    names = [
        name
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
        if given.get(name)
    ]
    return [
        warning(
            f"by {launch.launcher} this is process {launch.rank} of {launch.world_size}: a run "
            "waits for the others",
            f"unset {' '.join(names)}, unless a launcher has started this"
            if names
            else f"start the run with {launch.launcher}, or leave its shell",
        )
    ]


def _interface_findings(given: Mapping[str, str]) -> list[Finding]:
    found = []
    try:
        known = [name for _, name in socket.if_nameindex()]
    except OSError:
        return []
    for variable in _INTERFACES:
        # NCCL takes beginnings, lists, and ^ for all but these and = for exact names.
        words = given.get(variable, "").lstrip("^=").split(",")
        lost = [word for word in words if word and not any(n.startswith(word) for n in known)]
        if lost and not given[variable].startswith("^"):
            found.append(
                fault(
                    f"{variable}={given[variable]}, and there are only {', '.join(known)}",
                    f"unset {variable}",
                )
            )
    return found
