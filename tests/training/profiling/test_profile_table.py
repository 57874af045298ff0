"""A profile adds up to the wall time of its steps, largest item first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from rwkv_train.training.profiling.operator_words import OperatorWords
from rwkv_train.training.profiling.profile_table import Profiled, ProfileItem, add_up, write_table
from tests.config.resolving import resolved

CHANNEL = [[2048, 64], [64, 256]]


@dataclass(eq=False)
class Event:
    """What torch's profiler tells of one operator; microseconds."""

    name: str
    self_cpu_time_total: float = 0.0
    self_device_time_total: float = 0.0
    cpu_time_total: float = 0.0
    input_shapes: list[Any] = field(default_factory=list)
    cpu_parent: Event | None = None
    thread: int = 1
    device_type: str = "DeviceType.CPU"


@pytest.fixture
def words() -> OperatorWords:
    return OperatorWords(resolved("--rwkv_version 7 --n_layer 2 --n_embd 64 --micro_bsz 4")[0])


def events() -> list[Event]:
    """Two steps of 500 us each; on the card 10 for each 1 of the host."""
    data = Event("waiting for data", cpu_time_total=100)
    save = Event("saving", cpu_time_total=50)
    wkv = Event("_ChunkedWkv7", self_cpu_time_total=10)
    function = Event("autograd::engine::evaluate_function: X", self_cpu_time_total=7)
    return [
        Event("ProfilerStep#5", cpu_time_total=500),
        Event("ProfilerStep#6", cpu_time_total=500),
        data,
        # inside of a pause: the pause has it already
        Event("aten::mm", 30, 300, input_shapes=CHANNEL, cpu_parent=data),
        save,
        Event("aten::mm", 200, 300, input_shapes=CHANNEL),
        Event("aten::mm", 100, 100, input_shapes=CHANNEL, cpu_parent=function),
        function,
        wkv,
        # a part of the operator that is made up of it
        Event("aten::mul", 20, 200, cpu_parent=wkv),
        Event("aten::mul", 15, 50),
        # another thread, and a kernel, whose time its operator has
        Event("aten::copy_", 40, 0, thread=2),
        Event("kernel", 0, 99, device_type="DeviceType.CUDA"),
    ]


def test_the_main_thread_s_time_is_shared_out_to_the_last(words: OperatorWords):
    found = add_up(events(), words, on_gpu=False, waited_seconds=60e-6)
    assert (found.steps, found.microseconds) == (2, 1000)
    assert found.items == [
        # 1000 without all below
        ProfileItem("Python and the loop", 438, 0),
        ProfileItem("matrix products of the channel mix", 300, 2),
        ProfileItem("waiting for data", 100, 1),
        ProfileItem("waiting for other ranks", 60, 0),
        ProfileItem("saving", 50, 1),
        ProfileItem("wkv7 by chunks, forward", 30, 1),
        ProfileItem("element by element: mul", 15, 1),
        ProfileItem("autograd and small operators", 7, 0),
    ]
    assert sum(item.microseconds for item in found.items) == found.microseconds


def test_a_card_s_time_comes_with_the_host_s_pauses(words: OperatorWords):
    found = add_up(events(), words, on_gpu=True, waited_seconds=60e-6)
    assert found.items == [
        ProfileItem("matrix products of the channel mix", 400, 2),
        ProfileItem("wkv7 by chunks, forward", 200, 1),
        ProfileItem("the card waits for the host", 200, 0),
        ProfileItem("waiting for data", 100, 1),
        ProfileItem("saving", 50, 1),
        ProfileItem("element by element: mul", 50, 1),
    ]


def test_the_ten_largest_are_shown_and_the_others_together():
    items = [ProfileItem(f"item {n}", 1000.0 * (12 - n), 2 * n) for n in range(12)]
    heading, columns, *lines = write_table(Profiled(2, 78_000.0, items), "of this").splitlines()
    assert (heading, columns.split()) == ("of this", ["ms", "a", "step", "share", "calls"])
    # 12 ms in two steps, of 78
    assert lines[0].split() == ["6.00", "15.4%", "item", "0"]
    assert lines[9].split() == ["1.50", "3.8%", "9", "item", "9"]
    # 2 + 1 ms and 20 + 22 calls
    assert lines[10].split() == ["1.50", "3.8%", "21", "2", "smaller", "items"]
    assert len(lines) == 11
