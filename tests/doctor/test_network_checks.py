"""A host's name that does not resolve, a MASTER_ADDR that cannot be, and a taken port are named."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rwkv_train.doctor import network_checks as module
from rwkv_train.doctor.network_checks import check_network
from tests.doctor.planted import fault_of, findings, only

ADDRESSES = {"here": "10.0.0.7", "localhost": "127.0.0.1", "first": "10.0.0.1"}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine called here, which knows three names."""

    def known(name: str, port: object) -> list:
        if name not in ADDRESSES:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ADDRESSES[name], 0))]

    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(module.socket, "getaddrinfo", known)
    # It would ask for the address of its place by the same function.
    monkeypatch.setattr(module, "_loopback_fault", lambda: None)


def test_a_machine_that_knows_itself_is_sound():
    assert only(check_network).found == "here is 10.0.0.7; 127.0.0.1 connects"


def test_a_name_that_does_not_resolve_is_a_fault_with_several_machines(monkeypatch):
    monkeypatch.setattr(module.socket, "gethostname", lambda: "no-such-host")
    found = fault_of(check_network, level="warn")
    assert "the host's name no-such-host does not resolve" in found.found
    monkeypatch.setenv("MASTER_ADDR", "first")
    found = fault_of(check_network)
    assert found.remedy == "echo '127.0.1.1 no-such-host' | sudo tee -a /etc/hosts"


def test_a_main_address_that_does_not_resolve_is_a_fault(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "frist")
    assert "MASTER_ADDR=frist is no machine" in fault_of(check_network).found


@pytest.mark.parametrize(("address", "node", "faults"), [("localhost", "1", 1), ("first", "1", 0)])
def test_a_second_machine_does_not_meet_at_its_own_loopback(monkeypatch, address, node, faults):
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("NODE_RANK", node)
    found = [f for f in findings(check_network(Path())) if f.level == "fault"]
    assert len(found) == faults
    assert all("it would wait for a first one here" in f.found for f in found)


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.create_server(("", 0)) as server:
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        assert "is in use on this machine" in fault_of(check_network, level="warn").found


def test_a_loopback_that_is_shut_is_a_fault(monkeypatch):
    monkeypatch.setattr(module, "_loopback_fault", lambda: "timed out")
    found = fault_of(check_network)
    assert "cannot be reached at 127.0.0.1: timed out" in found.found and "iptables" in found.remedy


def test_the_loopback_of_this_machine_connects(monkeypatch):
    monkeypatch.undo()
    assert module._loopback_fault() is None
