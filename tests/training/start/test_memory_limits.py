"""Memory that a run may take is found: what is free, control groups, limits of the process."""

from __future__ import annotations

import os
import resource

import pytest

from rwkv_train.training.start import memory_limits as module
from rwkv_train.training.start.memory_limits import ADDRESSES_TO_COME, host_limits

KB = 1024
INFO = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 400 kB\nSwapTotal: 24 kB\nSwapFree: 20 kB\n"
STATUS = "Name:\tpython\nVmPeak:\t 900 kB\nVmSize:\t 800 kB\nVmData:\t 300 kB\n"


def limits(root, files, processes=1):
    # 50 pages are held, of 1 kB in these tests.
    held = {"proc/self/status": STATUS, "proc/self/statm": "800 50 20 1 0 300 0\n"}
    base = {"proc/meminfo": INFO, **held}
    for name, content in {**base, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return host_limits(processes, root)


@pytest.fixture(autouse=True)
def unlimited(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda name: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(os, "sysconf", lambda name: KB)


def test_what_others_use_is_off_and_what_the_run_holds_is_not(tmp_path):
    (found,) = limits(tmp_path, {})
    # available, swap that is free, and what this process has already
    assert (found.free, found.is_shared) == ((400 + 20 + 50) * KB, True)
    (two,) = limits(tmp_path, {}, processes=2)
    assert two.free == (400 + 20 + 2 * 50) * KB
    # never more than there is
    (many,) = limits(tmp_path, {}, processes=100)
    assert many.free == (1000 + 24) * KB


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000"}, 5000),
        # Inside a container the group has a name of the host, and its files lie at the root.
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/memory.max": "9000"}, 9000),
        (
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "max\n",
                "sys/fs/cgroup/memory.max": "7000\n",
            },
            7000,
        ),
        (
            # 900000 are held, of them 500000 of files and 50 kB by this process; swap besides
            {
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "1000000",
                "sys/fs/cgroup/a/memory.current": "900000",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 400000\nactive_file 100000\n",
                "sys/fs/cgroup/a/memory.swap.max": "77",
            },
            1_000_000 - 400_000 + 50 * KB + 77,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/x\n2:memory,hugetlb:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4096\n",
            },
            4096,
        ),
    ],
)
def test_a_control_group_leaves_what_it_does_not_hold(files, free, tmp_path):
    assert [found.free for found in limits(tmp_path, files)[1:]] == [free]


@pytest.mark.parametrize(
    ("limit", "held", "name"),
    [(resource.RLIMIT_AS, 800, "ulimit -v"), (resource.RLIMIT_DATA, 300, "ulimit -d")],
)
def test_a_limit_of_the_process_is_its_own_and_counts_addresses(
    limit, held, name, tmp_path, monkeypatch
):
    allowed = ADDRESSES_TO_COME + 5000 * KB
    monkeypatch.setattr(
        resource,
        "getrlimit",
        lambda asked: (allowed if asked == limit else resource.RLIM_INFINITY, 0),
    )
    _, found = limits(tmp_path, {})
    assert found.free == (5000 - held) * KB
    assert (found.is_shared, found.counts_addresses) == (False, True)
    assert found.name.startswith(name)


def test_a_system_that_tells_nothing_sets_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "sysconf_names", {})
    assert host_limits(1, tmp_path) == []
