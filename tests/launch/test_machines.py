"""Machines of a network of their own: they train as one, and leave as one.

Network namespaces stand for machines; where the system does not allow them the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.in_namespace import INTERFACE
from tests.launch.test_faults import error_lines
from tests.training.runs import loss_steps, start_all

pytestmark = pytest.mark.slow

NAMES = [f"rwkv{os.getpid() % 10000}{letter}" for letter in "abc"]
BRIDGE = f"rwkv{os.getpid() % 10000}"
ADDRESS = "10.213.7.{}"
PORT = "4100"


def run_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """Names of three namespaces that reach each other, numbered from 1."""
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip (iproute2) for network namespaces")
    try:
        run_ip("link", "add", BRIDGE, "type", "bridge")
        run_ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(NAMES, start=1):
            run_ip("netns", "add", name)
            outer = f"{name}o"
            run_ip("link", "add", outer, "type", "veth", "peer", INTERFACE, "netns", name)
            run_ip("link", "set", outer, "master", BRIDGE, "up")
            run_ip("-n", name, "addr", "add", f"{ADDRESS.format(number)}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                run_ip("-n", name, "link", "set", interface, "up")
    except subprocess.CalledProcessError as error:
        _remove()
        pytest.skip(f"this system allows no network namespaces: {error.stderr.strip()}")
    yield NAMES
    _remove()


def _remove() -> None:
    for words in (*(("netns", "del", name) for name in NAMES), ("link", "del", BRIDGE)):
        subprocess.run(["ip", *words], capture_output=True, check=False)


def call(
    machine: str, node: int, flags: list[str], cut_at: str = ""
) -> tuple[list[str], dict[str, str]]:
    """The start of the program on a machine, as one calls it there by hand."""
    place = {"MASTER_ADDR": ADDRESS.format(1), "MASTER_PORT": PORT, "NODE_RANK": str(node)}
    return [f"{machine}{cut_at}", "train.py", *flags], place


def start_on(calls: list[tuple[list[str], dict[str, str]]]) -> tuple[list[int], str, str]:
    return start_all("tests.launch.in_namespace", calls)


def test_two_machines_train_as_one(
    machines: list[str], flags: Callable[..., list[str]], tmp_path: Path
):
    given = flags(num_nodes=2, micro_bsz=2, strategy="ddp")
    statuses, out, err = start_on([call(machines[n], n, given) for n in (1, 0)])
    assert statuses == [0, 0], err
    assert "2, started by this program: 2 machines with 1 each, which meet at 10.213.7.1" in out
    assert out.count("RWKV-6 fp32 on 2 x CPU") == 1
    assert loss_steps(tmp_path / "out") == list(range(12))


def test_a_refusal_on_one_of_three_machines_is_the_refusal_of_all(
    machines: list[str], flags: Callable[..., list[str]], tmp_path: Path
):
    right = flags(num_nodes=3, strategy="ddp")
    wrong = flags(num_nodes=3, strategy="ddp", data_file=tmp_path / "nowhere")
    statuses, _, err = start_on(
        [call(machines[n], n, wrong if n == 2 else right) for n in range(3)]
    )
    assert statuses == [2, 2, 2], err
    (line,) = error_lines(err)
    assert line.startswith("error: rank 2 on ") and "nowhere" in line
    assert not (tmp_path / "out").exists()


def test_a_machine_that_does_not_come_is_named(
    machines: list[str], flags: Callable[..., list[str]], tmp_path: Path
):
    given = flags(num_nodes=3, strategy="ddp", dist_timeout=3)
    statuses, _, err = start_on([call(machines[n], n, given) for n in (0, 2)])
    assert statuses == [1, 1], err
    assert "waiting for machine 1 of 3 (rank 1 of 3) ..." in err
    (line,) = error_lines(err)
    assert "machine 1 of 3 (rank 1 of 3) did not start within 3 s" in line
    assert not (tmp_path / "out").exists()


def test_two_machines_with_the_number_0_are_refused(
    machines: list[str], flags: Callable[..., list[str]]
):
    given = flags(num_nodes=2, strategy="ddp", dist_timeout=3)
    statuses, _, err = start_on([call(machines[n], 0, given) for n in (0, 1)])
    assert statuses[1] in (1, 2), err
    assert any("NODE_RANK=0" in line or "did not start" in line for line in error_lines(err))


def test_a_network_that_breaks_ends_the_run_on_both_sides(
    machines: list[str], flags: Callable[..., list[str]]
):
    given = flags(num_nodes=3, micro_bsz=1, strategy="ddp", dist_timeout=5)
    calls = [call(machines[n], n, given, ":3" if n == 2 else "") for n in range(3)]
    statuses, _, err = start_on(calls)
    assert statuses == [1, 1, 1], err
    lines = error_lines(err)
    # One on each side: they cannot agree who speaks.
    assert len(lines) == 2, err
    assert any(line.startswith("error: rank 2 on ") for line in lines)
    assert any("rank 0 does not answer any more" in line for line in lines)
