"""The table of measured speeds: what it says about a call, how it is kept, how it is obeyed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rwkv_train.errors import BackendError
from rwkv_train.ops.backends import dispatch, measurements
from rwkv_train.ops.backends.dispatch import Call, backends_of, choose
from rwkv_train.ops.backends.measurements import (
    BOTH,
    FORWARD,
    Measurement,
    Workload,
    rank,
    read,
    record,
)
from rwkv_train.ops.native import custom_ops
from rwkv_train.ops.native.custom_ops import KERNELS
from rwkv_train.ops.wkv4 import native
from rwkv_train.ops.wkv6 import BACKENDS, wkv6
from tests.cuda.host_kernels import CHUNKS, FULL, SEGMENTS, WIDE

WANTED = Workload("wkv7", BOTH, "sm_90", "bfloat16", 512, 4096, 64)


def row(backend: str, ms: float, **changes) -> Measurement:
    """wkv7 on a made-up card, 8 rows of 64 heads, 4096 tokens, bf16, both directions."""
    discovered = {
        "op": "wkv7",
        "direction": BOTH,
        "card": "sm_90",
        "device": "Made-up 9000",
        "dtype": "bfloat16",
        "batch": 8,
        "time": 4096,
        "heads": 64,
        "size": 64,
        "backend": backend,
        "ms": ms,
        "versions": "torch 2",
    }
    return Measurement(**(discovered | changes))


def test_the_fastest_at_the_nearest_shape_comes_first():
    rows = [
        row("native:scan", 3.0),
        row("native:chunks", 2.0),
        row("chunked", 9.0),
        row("native:scan", 1.0, time=128),
        row("native:chunks", 2.0, time=128),
    ]
    assert rank(rows, WANTED) == ("native:chunks", "native:scan", "chunked")
    # the geometric mean of the two lengths is 724.08
    assert rank(rows, WANTED._replace(time=725)) == rank(rows, WANTED)
    assert rank(rows, WANTED._replace(time=724)) == ("native:scan", "native:chunks")


def test_rows_times_heads_count_whatever_their_split():
    few, many = {"batch": 1, "heads": 8}, {"batch": 64, "heads": 8}
    rows = [
        row("native:wide", 1.0, **few),
        row("native:scan", 2.0, **few),
        row("native:wide", 2.0, **many),
        row("native:scan", 1.0, **many),
    ]
    assert rank(rows, WANTED._replace(pairs=8))[0] == "native:wide"
    assert rank(rows, WANTED._replace(pairs=512))[0] == "native:scan"


@pytest.mark.parametrize(
    "changes",
    [
        {"op": "wkv6"},
        {"direction": FORWARD},
        {"card": "sm_80"},
        {"dtype": "float32"},
        {"size": 128},
    ],
)
def test_measurements_of_something_else_do_not_count(changes):
    rows = [row("native:scan", 1.0, **changes), row("native:chunks", 2.0, **changes)]
    assert rank(rows, WANTED) == ()


def test_a_shape_at_which_nothing_was_compared_does_not_count():
    rows = [
        row("native:scan", 1.0),
        row("native:scan", 3.0, time=128),
        row("native:chunks", 2.0, time=128),
    ]
    assert rank(rows, WANTED) == ("native:chunks", "native:scan")
    assert rank(rows[:1], WANTED) == ()


def test_the_later_of_two_measurements_counts():
    rows = [row("native:scan", 3.0), row("native:chunks", 2.0), row("native:scan", 1.0)]
    assert rank(rows, WANTED) == ("native:scan", "native:chunks")


def test_a_file_keeps_its_remarks_and_one_row_for_each_thing(tmp_path):
    file = tmp_path / "speeds.csv"
    record(file, [row("native:scan", 3.0), row("native:chunks", 2.25)])
    file.write_text("# a remark, with a comma\n" + file.read_text())
    record(file, [row("native:scan", 1.5, versions="torch 3, CUDA 13"), row("chunked", 9.0)])
    assert file.read_text().startswith("# a remark, with a comma\nop,direction,card,")
    assert sorted(read(file)) == sorted(
        [
            row("native:scan", 1.5, versions="torch 3, CUDA 13"),
            row("native:chunks", 2.25),
            row("chunked", 9.0),
        ]
    )


def test_the_projects_table_names_backends_that_exist_and_compares_them():
    rows = read(measurements.FILE)
    assert rows
    for each in rows:
        module = __import__(f"rwkv_train.ops.{each.op}", fromlist=["BACKENDS"])
        assert each.backend in {backend.name for backend in module.BACKENDS}
        assert each.ms > 0 and each.direction in (FORWARD, BOTH)
        assert rank(rows, each.workload()), each


@pytest.fixture
def table(monkeypatch):
    """Puts made-up rows in the place of the project's table."""

    def put(*rows: Measurement) -> None:
        monkeypatch.setattr(measurements, "ranking", lambda wanted: rank(rows, wanted))

    return put


def a_call(**changes) -> Call:
    discovered = {
        "op": "wkv6",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "batch": 2,
        "time": 256,
        "heads": 4,
        "head_size": 64,
        "needs_grad": False,
        "has_state": False,
        "has_reset": False,
    }
    return Call(**(discovered | changes))


def cpu_row(backend: str, ms: float, **changes) -> Measurement:
    discovered = {
        "op": "wkv6",
        "direction": FORWARD,
        "card": "cpu",
        "dtype": "float32",
        "batch": 2,
        "heads": 4,
        "time": 256,
    }
    return row(backend, ms, **(discovered | changes))


def test_auto_obeys_the_table(table, monkeypatch):
    monkeypatch.setattr(dispatch, "_modules", dict(dispatch._modules))
    backends = backends_of("toy", "native", "chunked", "native:scan")
    asked = []

    def refuses(call):
        asked.append(call.kernel)
        return "it is Sunday" if call.kernel == "scan" else None

    for name in ("native", "chunked"):
        dispatch._modules[f"rwkv_train.ops.toy.{name}"] = [SimpleNamespace(refuses=refuses)]
    assert choose(backends, "auto", a_call()) == 0
    table(cpu_row("chunked", 1.0), cpu_row("native", 2.0))
    assert choose(backends, "auto", a_call()) == 1
    assert choose(backends, "native", a_call()) == 0
    table(cpu_row("native:scan", 1.0), cpu_row("chunked", 2.0), cpu_row("native", 3.0))
    assert choose(backends, "auto", a_call()) == 1
    assert asked[-2:] == ["scan", ""]
    table(cpu_row("chunked", 1.0, direction=BOTH), cpu_row("native", 2.0, direction=BOTH))
    assert choose(backends, "auto", a_call()) == 0
    assert choose(backends, "auto", a_call(needs_grad=True)) == 1


def test_a_call_counts_batch_and_length_up_to_the_next_power_of_two(monkeypatch):
    seen = []

    def take_the_second(backends, name, call):
        seen.append(call)
        return choose(backends, "chunked", call)

    monkeypatch.setattr(dispatch, "choose", take_the_second)
    for batch, time in ((1, 1), (3, 4), (5, 1000)):
        x = torch.zeros(batch, time, 2, 4)
        wkv6(x, x, x, x, x[0, 0])
    assert [(call.batch, call.time) for call in seen] == [(1, 1), (4, 4), (8, 1024)]


def test_kernels_have_the_launchers_numbers():
    assert KERNELS == {"": 0, "scan": FULL, "wide": WIDE, "chunks": CHUNKS, "segments": SEGMENTS}


@pytest.fixture
def card(monkeypatch):
    """A CUDA device that exists in memory only, with libraries that are said to be loaded."""
    properties = SimpleNamespace(
        name="Made-up 9000", major=9, minor=0, shared_memory_per_block_optin=227 * 1024
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(custom_ops, "_refusals", {("wkv6", "cuda"): None, ("wkv4", "cuda"): None})
    monkeypatch.setattr(measurements, "card_of", lambda device: "sm_90")
    return properties


def chosen(name: str, **changes) -> str:
    return BACKENDS[choose(BACKENDS, name, a_call(device=torch.device("cuda"), **changes))].name


def test_a_gpu_takes_the_kernel_that_the_table_names(card, table):
    assert chosen("auto", dtype=torch.bfloat16) == "native"
    discovered = {"op": "wkv6", "direction": FORWARD, "time": 256, "batch": 2, "heads": 4}
    table(row("native:wide", 1.0, **discovered), row("native:chunks", 2.0, **discovered))
    assert chosen("auto", dtype=torch.bfloat16) == "native:wide"
    assert chosen("native:chunks", dtype=torch.bfloat16) == "native:chunks"


def test_a_gpu_call_without_a_kernel_is_refused_by_name_and_served_by_auto(card):
    for changes, reason in (
        ({"head_size": 48}, "head sizes 32, 64, 128, 256, not 48"),
        ({"dtype": torch.float64}, "not torch.float64"),
    ):
        with pytest.raises(BackendError, match=reason):
            chosen("native", **changes)
        assert chosen("auto", **changes) == "chunked"
    for changes in (
        {"dtype": torch.float32},
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16, "head_size": 128},
    ):
        with pytest.raises(BackendError, match=r"'native:chunks' .* serves bfloat16 with"):
            chosen("native:chunks", **changes)
        assert chosen("native:scan", **changes) == "native:scan"


def test_wkv4_on_a_gpu_takes_any_width_and_has_no_chunks(card):
    call = a_call(op="wkv4", device=torch.device("cuda"), heads=100, head_size=1)
    assert native.refuses(call) is None


def test_a_card_that_is_too_small_is_refused_with_its_name(card):
    card.shared_memory_per_block_optin = 99 * 1024
    assert chosen("native", head_size=128) == "native"
    with pytest.raises(BackendError, match=r"170 KiB of shared memory .* Made-up 9000 has 99 KiB"):
        chosen("native", head_size=256)
    assert chosen("native:chunks", dtype=torch.bfloat16) == "native:chunks"
    card.shared_memory_per_block_optin = 81 * 1024
    with pytest.raises(BackendError, match=r"needs 82 KiB .* has 81 KiB"):
        chosen("native:chunks", dtype=torch.bfloat16)
    card.major, card.minor = 7, 5
    with pytest.raises(BackendError, match=r"capability 8\.0, and Made-up 9000 has 7\.5"):
        chosen("native")


def test_a_cpu_has_one_native_kernel():
    with pytest.raises(BackendError, match=r"'native:scan' .* a CPU has one native kernel"):
        choose(BACKENDS, "native:scan", a_call())
