"""`rwkv-doctor` begins without any library, and ends with the faults that there are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_train.doctor import __main__ as module
from rwkv_train.doctor.__main__ import main
from rwkv_train.doctor.check_table import CHECKS, Check
from rwkv_train.doctor.findings import Finding, fault, good, warning
from tests.checkout import ROOT


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch):
    """Puts checks that find so into the table's place, by name."""

    def set_up(needs: dict[str, tuple[str, ...]] | None = None, **found: list[Finding]) -> None:
        rows = [
            Check(
                name,
                "a toy",
                lambda folder, said=said: iter(said),
                None,
                (needs or {}).get(name, ()),
            )
            for name, said in found.items()
        ]
        monkeypatch.setattr(module, "CHECKS", rows)

    return set_up


def test_nothing_wrong_is_a_pass(table, capsys):
    table(one=[good("all is well")], two=[warning("slow", "wait")])
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rwkv-train ") and "Python 3." in lines[0]
    assert lines[1].split() == ["ok", "one", "all", "is", "well"]
    assert lines[3].split() == ["do:", "wait"]
    assert lines[-2].startswith("2 checks in ") and lines[-2].endswith("1 warning")
    assert lines[-1] == "RESULT: PASS"


def test_faults_are_counted_by_what_there_is_to_do(table, capsys):
    table(
        one=[fault("old setuptools", "pip install 'setuptools<81'")],
        two=[fault("no pkg_resources", "pip install 'setuptools<81'"), fault("no disk", "df")],
    )
    assert main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2]] == ["FAULT", "do:", "skip", "FAULT", "do:"]
    assert "no pkg_resources (as above)" in lines[3]
    assert lines[-1] == "RESULT: 2 faults"


def test_what_needs_a_faulty_check_is_not_made(table, capsys):
    needs = {"steps": ("torch",), "ring": ("steps",)}
    table(needs, torch=[fault("broken", "mend")], steps=[good("never")], ring=[good("never")])
    assert main([]) == 1
    out = capsys.readouterr().out
    assert "never" not in out and "not without torch, which has a fault" in out
    assert out.endswith("RESULT: 1 fault\n")


def test_json_is_one_object(table, capsys):
    table(one=[fault("broken", "mend", number=3)], two=[good("fine", machine={"python": "3"})])
    assert main(["--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["program"], told["schema"], told["result"]) == ("rwkv-doctor", 1, "FAULT")
    assert (told["faults"], told["warnings"], told["machine"]) == (1, 0, {"python": "3"})
    assert list(told["checks"]) == ["one", "two"]
    assert told["findings"][0] == {
        "check": "one",
        "level": "fault",
        "found": "broken",
        "remedy": "mend",
        "measured": {"number": 3},
    }
    assert told["findings"][1]["measured"] == {}


def test_every_key_of_the_object_is_in_its_document(table, capsys):
    table(one=[good("fine")])
    main(["--json"])
    told = json.loads(capsys.readouterr().out)
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    keys = [*told, *told["findings"][0]]
    assert all(f"`{key}`" in text for key in keys), keys


def test_every_check_is_in_its_document_and_in_the_list(capsys):
    assert main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    names = [check.name for check in CHECKS]
    assert listed == names and len(set(names)) == len(names)
    text = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in names)


def test_checks_are_chosen_by_name_and_long_ones_left_out(capsys):
    assert main(["--only", "clock,python", "--only", "limits", "--list"]) == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert words == ["python", "limits", "clock"]
    main(["--quick", "--list"])
    left = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {check.name for check in CHECKS} - left == {"gloo", "nccl", "training"}


def test_needs_are_of_checks_that_come_before():
    names = [check.name for check in CHECKS]
    for place, check in enumerate(CHECKS):
        assert set(check.needs) <= set(names[:place]), check.name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "tor"], "there is no such check; perhaps you meant torch"),
        (["--only", ","], "--only names no check"),
        (["--only", "torch", "--quick"], "give one of them"),
        (["--list", "--json"], "give one of them"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(words, told, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and told in captured.err


def run_doctor(*words: str, path: Path | None = None, options: tuple[str, ...] = ()):
    """Runs the script of the checkout in a process of its own."""
    before = {} if path is None else {"PYTHONPATH": f"{path}:{os.environ['PYTHONPATH']}"}
    return subprocess.run(
        [sys.executable, *options, str(ROOT / "doctor.py"), *words],
        env={**os.environ, **before},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_python_without_any_package_is_told_what_it_lacks():
    # -S hides what is installed, here and in the children.
    done = run_doctor("--only", "python,requirements,numpy,torch,clock", options=("-S",))
    assert (done.returncode, done.stderr) == (1, "")
    assert "12 of 12 packages are not installed: torch, numpy, " in done.stdout
    assert f"do: {sys.executable} -m pip install -r {ROOT / 'requirements.txt'}" in done.stdout
    assert "skip   numpy         numpy is not installed (as above)" in done.stdout
    assert "skip   torch         not without numpy, which has a fault" in done.stdout
    assert done.stdout.endswith("RESULT: 1 fault\n")


def test_a_torch_that_crashes_when_it_is_imported_is_named(tmp_path):
    (tmp_path / "torch").mkdir()
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
    (tmp_path / "torch" / "__init__.py").write_text(crash)
    done = run_doctor("--only", "torch,kernels", path=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAULT  torch         killed by signal 4 (SIGILL) at: import torch" in done.stdout
    assert "skip   kernels       not without torch" in done.stdout
