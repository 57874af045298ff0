"""Libraries that a run needs are built side by side, with one line for the user."""

from __future__ import annotations

import pytest

from rwkv_train.errors import BackendError
from rwkv_train.ops.native import prebuild as prebuilding
from rwkv_train.ops.native.build import Target
from rwkv_train.ops.native.prebuild import prebuild


@pytest.fixture
def built(monkeypatch, tmp_path) -> list[tuple[str, str, int]]:
    """Collects name, device and jobs of what is built, in place of building it."""
    found: list[tuple[str, str, int]] = []

    def build_none(target: Target, jobs: int) -> None:
        found.append((target.name, target.device, jobs))
        if target.name == "broken":
            raise BackendError("does not compile")

    monkeypatch.setattr(prebuilding, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(prebuilding, "built_library", build_none)
    monkeypatch.setattr(
        prebuilding,
        "needs_building",
        lambda target: (target.name, target.device) not in done(found),
    )
    monkeypatch.setattr(prebuilding, "has_sources", lambda op, device: op != "torch_only")
    monkeypatch.setattr(prebuilding, "target_of", family_of)
    return found


def done(found: list[tuple[str, str, int]]) -> list[tuple[str, str]]:
    return [each[:2] for each in found]


def family_of(op: str, device: str) -> Target:
    """Returns one library for the operators in lower case, others have one each."""
    return Target(op if op in ("wkv", "broken") else "family", device)


def test_each_library_is_built_once_with_its_share_of_the_processors(built, capsys):
    prebuild(["wkv", "one", "two", "torch_only"], "cpu", 7)
    assert sorted(built) == [("family", "cpu", 3), ("wkv", "cpu", 3)]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("building the wkv CPU kernel, family CPU kernel side by side")
    prebuild(["wkv", "one"], "cpu", 7)
    assert len(built) == 2


def test_libraries_for_a_gpu_bring_those_for_the_cpu(built):
    prebuild(["one"], "cuda", 1)
    assert sorted(built) == [("family", "cpu", 1), ("family", "cuda", 1)]


def test_a_single_library_is_left_to_the_first_call(built):
    prebuild(["one", "two"], "cpu", 4)
    assert built == []


def test_what_cannot_be_built_is_no_error_yet(built):
    prebuild(["broken", "one"], "cpu", 4)
    assert sorted(done(built)) == [("broken", "cpu"), ("family", "cpu")]
