"""Kernels are built before ranks start, and the header says who serves each operator."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import train
from rwkv_train.config.load import load_config
from rwkv_train.config.versions import VERSIONS
from rwkv_train.errors import BackendError
from rwkv_train.ops.backends.dispatch import Refusal
from rwkv_train.training.start import build_kernels
from rwkv_train.training.start.build_kernels import build_ahead, build_for, describe_operators
from tests.config.resolving import MINIPILE, but, resolved
from tests.models.tiny import tiny_model

SHAPE = "--rwkv_version 6 --n_layer 2 --n_embd 64 --micro_bsz 2"
CPU = f"{SHAPE} --accelerator cpu --precision fp32"
GPU = f"{SHAPE} --accelerator gpu --precision bf16"


def operators_of(version: str) -> list[str]:
    """Lists the operators of a version, that of the time mix first."""
    row = VERSIONS[version]
    return [row.operator, *row.layer_operators, "embedding_norm", "head_loss"]


OPERATORS = operators_of("6")
NATIVE = [importlib.import_module(f"rwkv_train.ops.{operator}.native") for operator in OPERATORS]
OLD_NVCC = Refusal("nvcc is for CUDA 12.4\n  install the CUDA toolkit 13.0", kind="build")


@pytest.fixture
def refusing(monkeypatch):
    """Lets the project's own kernels refuse every call."""
    for native in NATIVE:
        monkeypatch.setattr(native, "refuses", lambda call: OLD_NVCC)


@pytest.fixture
def card(monkeypatch):
    """A card that no kernel is run on."""
    monkeypatch.setattr(build_kernels, "card_of", lambda device: f"made-up {device.type}")
    monkeypatch.setattr("rwkv_train.ops.backends.measurements.card_of", lambda device: "sm_90")
    return but(MINIPILE, gpu_count=1, gpu_has_bf16=True)


def test_every_operator_is_asked_for_the_call_of_the_run(monkeypatch):
    asked = []
    for native in NATIVE:
        monkeypatch.setattr(native, "refuses", asked.append)
    found = build_for(resolved(f"{CPU} --head_size_a 32")[0])
    assert [(one.operator, one.backend, one.architecture) for one in found] == [
        (operator, "native", "cpu") for operator in OPERATORS
    ]
    wkv, *others = asked
    assert (wkv.batch, wkv.time, wkv.heads, wkv.head_size) == (2, 512, 2, 32)
    assert wkv.needs_grad and wkv.dtype == torch.float32
    (shift,) = (call for call in others if call.op == "norm_shift")
    assert (shift.heads, shift.head_size) == (64, 1)


def test_missing_libraries_are_built_first_but_for_a_backend_without_one(monkeypatch):
    wanted = []
    monkeypatch.setattr(build_kernels, "prebuild", lambda *given: wanted.append(given[:2]))
    for backend in ("auto", "chunked"):
        build_for(resolved(f"{CPU} --wkv_backend {backend}")[0])
    assert wanted == [(OPERATORS, "cpu"), (OPERATORS[1:], "cpu")]


def test_the_header_tells_in_one_line_what_a_backend_serves():
    found = build_for(resolved(f"{CPU} --wkv_backend chunked")[0])
    chunked, *others = describe_operators(found, "cpu")
    assert chunked == ("operators", "wkv6: chunked, cpu")
    assert all(name == "operators" for name, _ in others)
    together = [one._replace(backend="native") for one in found]
    names = ", ".join(one.operator for one in found)
    assert describe_operators(together, "cpu") == [("operators", f"{names}: native, cpu")]


def test_a_gpu_without_its_kernels_is_told_loudly_in_one_line_each(refusing, card, caplog):
    config = resolved(GPU, card)[0]
    found = build_for(config)
    lines = describe_operators(found, "gpu")
    assert lines[0] == ("operators", "wkv6: chunked, made-up cuda")
    name, text = lines[2]
    assert name == "WARNING"
    names = ", ".join(one.operator for one in found)
    assert text.startswith(f"{names} run on THE GPU without kernels, several times slower, because")
    assert text.endswith("nvcc is for CUDA 12.4 install the CUDA toolkit 13.0")
    assert not caplog.records, "the header tells it, once"


def test_a_cpu_without_its_kernels_gets_a_note(refusing):
    found = build_for(resolved(CPU)[0])
    lines = describe_operators(found, "cpu")
    assert [name for name, _ in lines] == ["operators", "operators", "note"]
    assert describe_operators(found[:1], "cpu")[-1][1].startswith(
        "wkv6 runs on the CPU without its kernel, several times slower, because"
    )


def test_another_backend_by_name_is_no_news():
    found = build_for(resolved(f"{CPU} --wkv_backend chunked")[0])
    assert found[0].backend == "chunked"
    assert describe_operators(found, "cpu")[2:] == []


def test_a_backend_by_name_that_cannot_serve_is_refused(refusing):
    with pytest.raises(BackendError, match="backend 'native' was asked for"):
        build_for(resolved(f"{CPU} --wkv_backend native")[0])


@pytest.fixture
def built(monkeypatch):
    """What would be built and loaded, in order."""
    calls = []
    monkeypatch.setattr(build_kernels, "prebuild", lambda *_: None)
    monkeypatch.setattr(build_kernels.build, "load", lambda *target: calls.append(target))
    return calls


def given(folder: Path, *words: str):
    return load_config(["--data_file", "x", "--proj_dir", str(folder), *words])


@pytest.mark.parametrize(
    ("words", "cards", "operators", "device"),
    [
        ("--rwkv_version 6 --accelerator cpu", True, operators_of("6"), "cpu"),
        ("--rwkv_version 5", False, operators_of("5"), "cpu"),
        ("--rwkv_version 5", True, operators_of("5"), "cuda"),
        ("--rwkv_version 7 --wkv_backend native:scan", True, operators_of("7"), "cuda"),
        ("--rwkv_version 7 --wkv_backend chunked", False, operators_of("7")[1:], "cpu"),
        ("", False, operators_of("7"), "cpu"),
        # Its weights are RWKV-4's.
        ("--load_model {base}", False, operators_of("4"), "cpu"),
        ("--load_model nowhere.pth", False, [], "cpu"),
    ],
)
def test_before_ranks_start_kernels_are_built_for_what_is_there(
    words, cards, operators, device, built, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards)
    base = tmp_path / "base.pth"
    torch.save(tiny_model("4").state_dict(), base)
    build_ahead(given(tmp_path / "out", *words.format(base=base).split()))
    assert built == [(operator, device) for operator in operators]


def test_a_folder_that_tells_the_version_is_not_guessed_about(built, tmp_path):
    (tmp_path / "rwkv-init.pth").touch()
    build_ahead(given(tmp_path))
    assert built == []
    build_ahead(given(tmp_path, "--rwkv_version", "4", "--accelerator", "cpu"))
    assert built == [(operator, "cpu") for operator in operators_of("4")]


@pytest.mark.parametrize("devices", ["1", "2"])
def test_what_starts_ranks_has_built_before(devices, built, tmp_path, monkeypatch):
    def run(ranks, body):
        built.append(ranks.launch.local_size)
        return 7

    monkeypatch.setattr("rwkv_train.training.distributed.ranks.Ranks.run", run)
    line = ["--data_file", "x", "--proj_dir", str(tmp_path), "--rwkv_version", "6"]
    assert train.main([*line, "--accelerator", "cpu", "--devices", devices]) == 7
    # A process that is alone looks at its files first.
    ahead = [(operator, "cpu") for operator in operators_of("6")] if devices == "2" else []
    assert built == [*ahead, int(devices)]


def test_processes_that_share_samples_find_the_kernels_for_it_built(monkeypatch):
    asked: list[list[str]] = []
    monkeypatch.setattr(
        build_kernels, "prebuild", lambda names, device, processors: asked.append(list(names))
    )
    alone = resolved(f"{CPU} --devices 2")[0]
    shared = resolved(f"{CPU} --devices 2 --context_parallel 2")[0]
    for config in (alone, shared):
        # Who serves the operators is the same, and all the header tells.
        assert [one.operator for one in build_for(config)] == OPERATORS
    assert set(asked[1]) - set(asked[0]) == {"wkv4_piece"}
    # Of a backend without kernels none are wanted.
    build_for(resolved(f"{CPU} --devices 2 --context_parallel 2 --wkv_backend chunked")[0])
    assert "wkv4_piece" not in asked[2]
