"""The benchmark of the WKV operators: what it compares, refuses and records."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from benchmarks import wkv, wkv_cases, wkv_timing
from benchmarks.wkv_cases import CASES, Contender, Shape, make_inputs, parity_fault
from rwkv_train.ops.backends.measurements import BOTH, FORWARD, read
from tests.ops.native_cases import OPS

SHAPE = Shape(1, 9, 2, 64)


def inputs_of(op: str):
    return make_inputs(op, SHAPE, torch.float32, torch.device("cpu"))


def chunk_rwkv6(
    r, k, v, w, u, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None
):
    """flash-linear-attention's function as documented: w is the logarithm of the decay."""
    scale = r.shape[-1] ** -0.5 if scale is None else scale
    state = r.new_zeros(r.shape[0], r.shape[2], r.shape[3], v.shape[3])
    outputs = []
    for t in range(r.shape[1]):
        new = k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", r[:, t] * scale, state + u[..., None] * new))
        state = state * w[:, t].exp()[..., None] + new
    return torch.stack(outputs, 1), state if output_final_state else None


def chunk_rwkv7(
    r, w, k, v, a, b, scale=1.0, initial_state=None, output_final_state=True, cu_seqlens=None
):
    """Likewise; a reads the state and b writes what was read."""
    state = r.new_zeros(r.shape[0], r.shape[2], r.shape[3], v.shape[3])
    outputs = []
    for t in range(r.shape[1]):
        read_back = torch.einsum("bhk,bhkv->bhv", a[:, t], state)
        state = state * w[:, t].exp()[..., None] + b[:, t, :, :, None] * read_back[:, :, None]
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", r[:, t] * scale, state))
    return torch.stack(outputs, 1), state if output_final_state else None


@pytest.fixture
def fla(monkeypatch):
    """A package `fla` with the documented functions."""
    for name, function in (("rwkv6", chunk_rwkv6), ("rwkv7", chunk_rwkv7)):
        module = ModuleType(f"fla.ops.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, f"fla.ops.{name}", module)
    for package in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))


@pytest.mark.parametrize("op", ["wkv6", "wkv7"])
def test_it_calls_the_operators_of_others_as_they_are_documented(op, fla):
    contender = Contender("fla", wkv_cases._FLA[op])
    assert parity_fault(op, contender, inputs_of(op), torch.float32) is None


@pytest.mark.parametrize("op", OPS)
def test_a_contender_with_a_wrong_result_has_a_parity_fault(op):
    function, names = CASES[op].module, CASES[op].names
    right = Contender("right", lambda x: function(*(x[n] for n in names), backend="chunked")[0])
    wrong = Contender("wrong", lambda x: right.run(x) * 1.001)
    assert parity_fault(op, right, inputs_of(op), torch.float32) is None
    fault = parity_fault(op, wrong, inputs_of(op), torch.float32)
    assert fault == "relative error 1.0e-03 of y exceeds 1e-05"


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["wkv", *arguments])
    monkeypatch.setattr(wkv_timing, "COPY_BYTES", 1 << 12)
    monkeypatch.setattr(wkv_timing, "MATMUL_SIZE", 8)
    status = wkv.main()
    return status, capsys.readouterr().out


def test_it_records_what_it_measured_but_for_the_token_loop(monkeypatch, capsys, tmp_path):
    file, plot = tmp_path / "speeds.csv", tmp_path / "plot.png"
    status, out = run(
        monkeypatch,
        capsys,
        "--ops",
        "46",
        "--device",
        "cpu",
        "--batch",
        "2",
        "--time",
        "3",
        "--heads",
        "2",
        "--size",
        "8",
        "--repeats",
        "1",
        "--backends",
        "chunked,reference",
        "--record",
        str(file),
        "--plot",
        str(plot),
    )
    assert status == 0 and "4 measurements recorded" in out
    rows = read(file)
    assert {(row.op, row.direction) for row in rows} == {
        (op, direction) for op in ("wkv4", "wkv6") for direction in (FORWARD, BOTH)
    }
    assert {row.backend for row in rows} == {"chunked"}
    shapes = {row.op: (row.batch, row.time, row.heads, row.size) for row in rows}
    assert shapes == {"wkv4": (2, 3, 16, 1), "wkv6": (2, 3, 2, 8)}
    assert all(row.card == "cpu" and row.dtype == "float32" for row in rows)
    assert plot.stat().st_size > 10_000


def test_it_prints_no_speed_for_a_wrong_result_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(wkv, "parity_fault", lambda *_: "y is off by 3e-2")
    status, out = run(
        monkeypatch,
        capsys,
        "--ops",
        "6",
        "--device",
        "cpu",
        "--time",
        "3",
        "--batch",
        "1",
        "--size",
        "8",
        "--backends",
        "chunked",
        "--repeats",
        "1",
    )
    assert status == 1
    assert "wkv6 chunked: NO SPEED, y is off by 3e-2" in out
    assert "chunked       forward" not in out


def test_the_floor_of_16_bit_is_fp32_where_that_is_faster(monkeypatch):
    rates = {torch.float32: 60e9, torch.bfloat16: 5e8, torch.float16: 9e10}
    monkeypatch.setattr(wkv_timing, "square_product_rate", lambda _, dtype, size: rates[dtype])
    cpu = torch.device("cpu")
    assert wkv_timing.product_rate(cpu, torch.bfloat16) == 60e9
    assert wkv_timing.product_rate(cpu, torch.float16) == 9e10


def test_it_compares_lengths_at_an_equal_number_of_tokens(monkeypatch, capsys):
    status, out = run(
        monkeypatch,
        capsys,
        "--lengths",
        "4,8",
        "--ops",
        "6",
        "--device",
        "cpu",
        "--batch",
        "4",
        "--time",
        "4",
        "--heads",
        "1",
        "--size",
        "8",
        "--backends",
        "chunked",
        "--repeats",
        "1",
    )
    assert status == 0
    assert "wkv6, 16 tokens, 1 x 8 channels; ns a token" in out
    (line,) = [line for line in out.splitlines() if line.startswith("chunked       forward   ")]
    assert "(1.00x)" in line and line.count("x)") == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--lengths", "512,8192"), "--lengths 8192 does not divide the 2048 tokens"),
        (("--lengths", "512,many"), "'many': expected a whole number above 0"),
        (("--batch", "0"), "'0': expected a whole number above 0"),
        (("--ops", "3"), "--ops 3: expected versions among 4567"),
        (("--ops", "66"), "--ops 66: expected versions among 4567"),
        (("--backends", "natve"), "--backends natve: there are native, chunked, reference"),
        (
            ("--device", "cpu", "--backends", "native:wide"),
            "--backends native:wide: there are native",
        ),
        (("--plot", "nowhere/x.png"), "nowhere is no folder"),
        (("--lengths", "512", "--plot", "x.png"), "leave --plot and --record out"),
    ],
)
def test_a_wrong_command_line_is_answered_before_anything_is_measured(
    monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(sys, "argv", ["wkv", *arguments])
    monkeypatch.setattr(wkv, "copy_rate", None)
    with pytest.raises(SystemExit) as stop:
        wkv.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err
