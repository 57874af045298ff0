"""Flags of rwkv-plan about the machines of a cluster: their links, disks, failures and restarts."""

from __future__ import annotations

import argparse
from typing import Any

from rwkv_train.errors import ConfigError
from rwkv_train.planning.amounts import count_written
from rwkv_train.planning.cluster.cluster_plan import ClusterWishes
from rwkv_train.planning.cluster.life_cycle import Storage

# Assumed where nothing is given: GB/s of a machine's disk, and seconds.
DISK, RESTART, DETECT = 2.0, 120.0, 15.0
_LEAST_HOURS = 0.01
# Words of a cluster for flags of train.py.
SYNONYMS = {"nodes": "num_nodes", "gpus_per_node": "devices"}
# What says how failures go, and so needs --mttf.
_ABOUT_FAILURES = (
    *("disk_bandwidth", "storage_bandwidth", "restart_seconds", "detect_seconds"),
    *("spare_nodes", "repair_minutes", "min_nodes", "failure_seed"),
)


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags, in a group of their own, to the parser of rwkv-plan."""
    add = parser.add_argument_group("on machines that fail").add_argument
    add("--nodes", metavar="N", help="machines: --num_nodes of train.py")
    add("--gpus_per_node", metavar="N", help="cards of each: --devices of train.py")
    add("--link_bandwidth", metavar="GB/s", help="of a card to the others of its machine, one way")
    add("--node_bandwidth", metavar="GB/s", help="of all network adapters of a machine; 50 a card")
    add("--mttf", metavar="HOURS", help="one machine's mean time to a failure; inf: none fails")
    add("--disk_bandwidth", metavar="GB/s", help=f"at which one machine saves; {DISK:g}")
    add("--storage_bandwidth", metavar="GB/s", help="at which all machines together save; no limit")
    add("--restart_seconds", metavar="S", help=f"from a failure's notice to a step; {RESTART:g}")
    add("--detect_seconds", metavar="S", help=f"until a failure is noticed; {DETECT:g}")
    add("--spare_nodes", metavar="N", help="idle machines that take a broken one's place; 0")
    add("--repair_minutes", metavar="M", help="until a broken machine is back; 0: at once")
    add("--min_nodes", metavar="N", help="with which a run goes on; all: it waits for all")
    add("--failure_seed", metavar="N", help="of the simulated failures; 0")


def cluster_wishes(flags: argparse.Namespace) -> ClusterWishes | None:
    """Returns what was said of failing machines; None: nothing.  Raises ConfigError."""
    if flags.mttf is None:
        given = [name for name in _ABOUT_FAILURES if getattr(flags, name) is not None]
        if given:
            raise ConfigError(
                f"--{given[0]} is about machines that fail: give --mttf HOURS too, the mean time "
                "to a failure of one"
            )
        return None
    none_fails = flags.mttf.casefold() == "inf"
    hours = float("inf") if none_fails else count_written("mttf", flags.mttf, "1000")
    if hours < _LEAST_HOURS:
        raise ConfigError(
            f"--mttf {flags.mttf}: no step is done on machines that fail every {3600 * hours:.2g} "
            f"s; expected hours, {_LEAST_HOURS} at least"
        )
    shared = _amount(flags, "storage_bandwidth", None)
    least = _whole(flags, "min_nodes", None)
    if least == 0:
        raise ConfigError("--min_nodes 0: a run needs one machine at least; give 1 or more")
    return ClusterWishes(
        mttf=3600 * hours,
        storage=Storage(
            1e9 * _amount(flags, "disk_bandwidth", DISK), None if shared is None else 1e9 * shared
        ),
        restart=_seconds(flags, "restart_seconds", RESTART),
        detect=_seconds(flags, "detect_seconds", DETECT),
        spares=_whole(flags, "spare_nodes", 0),
        repair=60 * _seconds(flags, "repair_minutes", 0.0),
        least=least,
        seed=_whole(flags, "failure_seed", 0),
    )


def _amount(flags: argparse.Namespace, name: str, missing: Any) -> Any:
    text = getattr(flags, name)
    return missing if text is None else count_written(name, text, "60")


def _seconds(flags: argparse.Namespace, name: str, missing: float) -> float:
    text = getattr(flags, name)
    # Nothing to wait for is an answer too.
    return 0.0 if text is not None and text.strip() == "0" else _amount(flags, name, missing)


def _whole(flags: argparse.Namespace, name: str, missing: Any) -> Any:
    text = getattr(flags, name)
    if text is None:
        return missing
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"--{name} {text}: expected a whole number, such as 4")
    return int(text)
