"""A wrong clock and variables that a launcher or a shell has left are named."""

from __future__ import annotations

import os

import pytest

from rwkv_train.doctor import machine_state as module
from rwkv_train.doctor.machine_state import check_clock, check_variables
from tests.doctor.planted import fault_of, only


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch):
    """Sets the environment of the check, of these variables alone."""

    def give(**variables: str) -> None:
        for name in list(os.environ):
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    give()
    return give


def test_a_rank_that_is_left_over_is_a_fault(given):
    given(RANK="1")
    found = fault_of(check_variables)
    assert "RANK=1 in the environment without WORLD_SIZE and LOCAL_RANK" in found.found
    assert found.remedy == "unset RANK"


def test_a_machines_number_that_is_left_over_is_a_fault(given):
    given(NODE_RANK="1")
    assert fault_of(check_variables).remedy == "unset NODE_RANK"


def test_a_port_that_is_none_is_a_fault(given):
    given(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_PORT="99999")
    assert "MASTER_PORT=99999 is no port" in fault_of(check_variables).found


def test_a_complete_set_says_whom_a_run_would_wait_for(given):
    given(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    found = fault_of(check_variables, level="warn")
    assert "this is process 1 of 2: a run waits for the others" in found.found
    assert found.remedy.startswith("unset RANK WORLD_SIZE LOCAL_RANK, unless")


@pytest.mark.parametrize(
    ("name", "value"), [("CUDA_LAUNCH_BLOCKING", "1"), ("TORCH_DISTRIBUTED_DEBUG", "DETAIL")]
)
def test_what_slows_every_step_is_named(given, name, value):
    given(**{name: value})
    assert fault_of(check_variables, level="warn").remedy == f"unset {name}"
    given(**{name: "0"})
    assert only(check_variables).level == "ok"


def test_cards_that_are_hidden_are_named(given):
    given(CUDA_VISIBLE_DEVICES="-1")
    assert fault_of(check_variables, level="warn").remedy == "unset CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(("value", "faulty"), [("ib7", True), ("^ib7", False), ("l", False)])
def test_an_interface_that_is_not_there_is_a_fault(given, monkeypatch, value, faulty):
    monkeypatch.setattr(module.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    given(NCCL_SOCKET_IFNAME=value)
    if faulty:
        found = fault_of(check_variables)
        assert found.found == "NCCL_SOCKET_IFNAME=ib7, and there are only lo, eth0"
    else:
        assert only(check_variables).level == "ok"


def test_a_clock_behind_the_programs_own_files_is_a_fault(monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 86_400.0 * 365 * 20)
    found = fault_of(check_clock)
    assert found.found.startswith("it is 1989-12-27") and "ntp" in found.remedy


def test_a_time_zone_that_is_unknown_is_named(given):
    given(TZ="Europe/Atlantis")
    assert "TZ=Europe/Atlantis" in fault_of(check_clock, level="warn").found


@pytest.mark.parametrize("zone", ["", "UTC", "EST5EDT", "<+03>-3", ":UTC"])
def test_time_zones_that_are_known_or_rules_are_sound(given, zone):
    given(TZ=zone)
    assert only(check_clock).level == "ok"
