"""Runs before all tests: one thread a process, no deadlines, who runs which tests, and when."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections import Counter
from collections.abc import Generator
from functools import partial
from typing import Any

from tests.checkout import ROOT
from tests.frame_memory import with_frame_memory

# The tests' tensors are small and two test processes share two cores: a second thread would spend
# its time waiting. Set before torch is imported and inherited by the runs that tests start; what
# tests several threads asks for them itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The programs that tests start find the package in the checkout, as the scripts do.
SRC = str(ROOT / "src")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))

import pytest
import torch
from hypothesis import settings

from rwkv_train.processors import usable_processors

# A busy machine makes any example slow; that says nothing about the code.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")


# A program started in the background by a shell script ignores Ctrl-C, and so would all that the
# tests start; what they do when it comes is under test.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


STANDIN = "tests/gpu_standin"
# What a process and the runs that it starts may take. Seen: 0.7 GiB of its own, 0.5 of the process
# that starts its runs, and as much for every rank, of which a run has up to four.
GIB_PER_PROCESS = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--gpu-standin`."""
    parser.addoption(
        "--gpu-standin",
        action="store_true",
        help=f"run {STANDIN} too, which needs what ./run-tests.sh --gpu-standin sets up",
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Says which tests there are besides, to who ran all others or asked for them."""
    wanted = config.args == config.getini("testpaths") or any(STANDIN in arg for arg in config.args)
    if wanted and not config.getoption("--gpu-standin"):
        terminalreporter.write_line(
            f"not run: {STANDIN}, the GPU's host path without a GPU; "
            "./run-tests.sh --gpu-standin sets up what it needs and runs it"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Returns how many processes share the tests with `-n auto`: one more than there are cores.

    Of the tests some wait, for a disk, a timeout or a connection that broke; with a process per
    core a core then waits with them. Where memory is short there are fewer.
    """
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    return max(1, min(usable_processors() + 1, gib // GIB_PER_PROCESS))


def unit_of(nodeid: str) -> str:
    """Returns the name of the unit that a test belongs to; one process runs a unit's tests in turn.

    A file's tests share what is slow to make. The table of modes is the longest file by far and its
    versions share nothing: each is a unit. The kernels compiled for the CPU serve several files.
    """
    file, _, test = nodeid.partition("::")
    if file.endswith("training/test_modes.py"):
        version = re.search(r"\[[\w-]+-(\d)-\w+\]$", test)
        return f"{file} {version[1] if version else 6}"
    if "/cuda/" in file and not file.endswith("test_nvcc.py"):
        return file.rpartition("/")[0]
    return file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Returns a scheduler that hands out units in the order in which they were collected."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    # Else it would sort by the number of tests; the longest tests are alone in their files.
    config.option.loadscopereorder = False
    return Units(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks `gpu` tests as skipped, with the reason, on a machine without a CUDA device.

    For several processes, units with most `slow` tests come first, then those of the rooms that
    are collected last, which train, so that short ones are left and all processes end together.
    """
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device and this machine has none")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
    if hasattr(config, "workerinput"):
        slow = Counter(unit_of(item.nodeid) for item in items if "slow" in item.keywords)
        place = {unit_of(item.nodeid): number for number, item in enumerate(items)}
        items.sort(key=lambda item: (-slow[unit_of(item.nodeid)], -place[unit_of(item.nodeid)]))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Calls a test where the frames of all that it calls have room."""
    test = pyfuncitem.obj
    pyfuncitem.obj = lambda **arguments: with_frame_memory(partial(test, **arguments))
    try:
        return (yield)
    finally:
        pyfuncitem.obj = test


def pytest_collection_finish() -> None:
    """Leaves what the imports have made out of garbage collection.

    Each collection would walk through some million objects that stay to the end: a quarter of a
    second, and Lightning and DeepSpeed collect several times a run.
    """
    gc.collect()
    gc.freeze()
