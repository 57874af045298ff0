"""A package that is missing is asked for in one line, with the command to install it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rwkv_train.command_line import packages_named
from rwkv_train.config.load import load_config
from rwkv_train.data.inspect.lengths import draw_lengths
from rwkv_train.errors import ConfigError, DataError
from rwkv_train.training.reporting.plot import LossPlot
from rwkv_train.training.start.check_machine import check_packages
from tests.checkout import ROOT


def forget(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Makes a package one that cannot be imported, also what of it is imported already."""
    loaded = [name for name in sys.modules if name.startswith(f"{package}.")]
    for name in (package, *loaded):
        # This is how Python remembers what it has not found.
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("package", "flags", "remedies"),
    [
        (
            "deepspeed",
            ["--strategy", "deepspeed_stage_2"],
            ["pip install 'rwkv-train[deepspeed]'", "--strategy ddp"],
        )
    ],
)
def test_a_run_that_needs_one_is_refused_before_it_writes(
    monkeypatch: pytest.MonkeyPatch, package: str, flags: list[str], remedies: list[str]
):
    check_packages(load_config(flags))
    forget(monkeypatch, package)
    check_packages(load_config(["--strategy", "ddp"]))
    check_packages(load_config([*flags, "--train_stage", "1"]))
    with pytest.raises(ConfigError) as raised:
        check_packages(load_config(flags))
    assert all(text in str(raised.value) for text in [" ".join(flags), *remedies])


def test_a_run_without_matplotlib_trains_and_says_once_what_is_not_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    forget(monkeypatch, "matplotlib")
    plot = LossPlot(tmp_path, "title", 16)
    for _ in range(2):
        plot.on_epoch(None)
        plot.on_validation(None)
    said = capsys.readouterr().out
    assert said.count("loss.png") == 1
    assert "pip install 'rwkv-train[plot]'" in said


def test_a_histogram_without_matplotlib_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    forget(monkeypatch, "matplotlib")
    with pytest.raises(DataError, match=r"rwkv-train\[plot\]"):
        draw_lengths(tmp_path / "lengths.png", np.array([3, 5], dtype=np.int32), "title")


@pytest.mark.parametrize(
    ("program", "words", "package"),
    [
        ("train.py", ["--help"], "tyro"),
        ("make_data.py", ["x.jsonl", "1", "16"], "numpy"),
        ("generate.py", ["--load_model", "x.pth"], "numpy"),
        ("compute_magic_prime.py", ["x", "16"], "numpy"),
    ],
)
def test_a_python_without_the_packages_ends_every_program_in_one_line(
    program: str, words: list[str], package: str, tmp_path: Path
):
    # -S hides what is installed.
    line = [sys.executable, "-S", str(ROOT / program), *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"lacks the package '{package}'" in done.stderr
    assert "pip install -r requirements.txt" in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_broken_is_told_in_one_line_with_who_names_the_remedy(capsys):
    with pytest.raises(SystemExit) as left, packages_named():
        raise ImportError("libcudart.so.13: cannot open\nshared object", name="torch._C")
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'torch' cannot be imported: libcudart.so.13: cannot open shared object" in line
    assert "doctor.py" in line
    with pytest.raises(ImportError), packages_named():
        from rwkv_train.files import no_such_name  # noqa: F401


def test_a_module_of_our_own_that_is_missing_is_a_fault_of_ours():
    with pytest.raises(ModuleNotFoundError), packages_named():
        import rwkv_train.no_such_module  # noqa: F401
