"""rwkv-verify: flags, table, exit status, and a report that shows every change of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rwkv_train.ops.squared_relu import reference as relu_reference
from rwkv_train.verification import verifying
from rwkv_train.verification.__main__ import main
from rwkv_train.verification.outcome_table import FAULTS_SHOWN, table_lines
from rwkv_train.verification.outcomes import NotRun, Outcome, Part, worst_of
from rwkv_train.verification.verification_file import content_checksum

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ["--quick", "--device", "cpu"]


def test_a_right_machine_passes_and_its_report_is_complete(tmp_path: Path, capsys):
    file = tmp_path / "verification.json"
    items = ["squared_relu", "matvec", "model-4"]
    assert main([*QUICK, "--only", *items, "--output", str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "RESULT: PASS"
    told = [line.partition("] ")[2].partition(":")[0] for line in printed if line[0:1] == "["]
    assert told == items
    content = json.loads(file.read_text())
    assert content["result"] == "PASS" and content["only"] == items and content["quick"]
    assert {row["what"] for row in content["verified"]} == set(items)
    assert set(content["digests"]) == {"kernels", "golden"}
    assert content["speed"]["product_gflops"]["fp32"] > 0
    assert content["machine"]["packages"]["torch"] == torch.__version__
    # it is pasted into bug reports
    assert not any(str(path) in file.read_text() for path in (tmp_path, Path.home(), Path.cwd()))
    assert len(file.read_text()) < 30_000
    assert main(["--check", str(file)]) == 0
    assert "complete and unchanged" in capsys.readouterr().out


def test_a_fault_is_status_1_named_and_kept_in_the_report(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(relu_reference, "run", lambda p: torch.relu(p) ** 2 * 1.01)
    file = tmp_path / "verification.json"
    assert main([*QUICK, "--only", "squared_relu", "--output", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "FAULT squared_relu, stored, fp64: z (65 tokens, 2 heads of 64): error 0.0" in printed
    assert printed.splitlines()[-1].startswith("RESULT: ")
    content = json.loads(file.read_text())
    assert {fault["result"] for fault in content["faults"]} == {"z", "gp"}
    assert main(["--check", str(file)]) == 1


def test_an_error_is_a_fault_of_its_item_and_ends_no_other(capsys, monkeypatch):
    def fails(*_: object) -> Part:
        raise RuntimeError("out of memory\nand a long story")

    monkeypatch.setattr(verifying, "check_model_ways", fails)
    assert main([*QUICK, "--only", "model-4", "matvec"]) == 1
    printed = capsys.readouterr().out
    assert "the check itself: RuntimeError: out of memory" in printed
    assert "[ 1/2] matvec: 52 right" in printed and "RESULT: 1 fault\n" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "wkv9"], "--only wkv9 is no item; perhaps you meant wkv"),
        (["--only", "x"], "--only x is no item; expected some of wkv4, wkv5"),
        (["--only"], "--only: expected at least one argument"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--quick", "--only", "bits-4"], "--quick leaves bits-4 out"),
        (["--device", "cuda", "--only", "bits-4"], "bits-4 is of the CPU alone"),
        (["--check", "a", "--quick"], "verifies nothing; leave --quick out"),
        (["--check", "a", "--device", "cpu"], "verifies nothing; leave --device out"),
        (["--check", "nowhere.json"], "--check nowhere.json: No such file"),
        (["--output", "nowhere/a.json"], "there is no folder nowhere"),
        (["--output", "."], "exists already"),
    ],
)
def test_wrong_flags_are_one_line_and_status_2(words: list[str], message: str, capsys):
    try:
        status = main(words)
    except SystemExit as leaving:
        status = leaving.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1, error


def test_a_report_that_was_changed_or_cut_off_is_told(tmp_path: Path, capsys):
    content = {"program": "rwkv-verify", "format": 1, "result": "PASS", "error": 1e-5}
    whole = json.dumps(content | {"sha256": content_checksum(content)})
    file = tmp_path / "a.json"
    for text, message in (
        (whole.replace("1e-05", "1e-06"), "was changed after it was written"),
        (whole.replace("PASS", "pass"), "was changed after it was written"),
        (json.dumps(content), "was changed after it was written"),
        (whole[:-2], "is cut off or no JSON"),
        ("[]", "is no report of rwkv-verify"),
        (whole.replace('"format": 1', '"format": 2'), "has format 2, expected 1"),
    ):
        file.write_text(text)
        assert main(["--check", str(file)]) == 2
        assert message in capsys.readouterr().err
    # another order and other spaces are the same contents
    again = json.loads(whole)
    assert again.pop("sha256") == content_checksum(dict(reversed(list(again.items()))))


def test_a_number_that_is_none_is_a_fault():
    found = Outcome("wkv7", "native", "fp32", "gk", "", math.nan, 1e-5)
    assert not found.is_right and worst_of([found]) is found
    assert Outcome("wkv7", "native", "fp32", "gk", "", 1e-6, 1e-5).used == pytest.approx(0.1)
    # of a type that cannot be exact, what it cannot avoid does not count
    assert Outcome("a", "b", "bf16", "c", "", 1.5, 2.0, 1.0).used == pytest.approx(0.5)


def test_the_table_shows_what_was_not_run_and_no_more_faults_than_one_reads():
    many = tuple(Outcome("keys", "native", "fp32", f"r{i}", "", 1.0, 0.1) for i in range(40))
    right = Outcome("matvec", "native", "fp32", "y", "", 1e-8, 1e-5)
    lines = list(
        table_lines(
            [
                Part("keys", many, (NotRun("keys", "native:scan", "no card"),)),
                Part("matvec", (right,)),
            ]
        )
    )
    assert "not run: keys by native:scan: no card" in lines
    assert sum(line.startswith("  FAULT") for line in lines) == FAULTS_SHOWN
    assert lines[-2:] == ["  and 10 more", "RESULT: 40 faults"]
    assert any(line.startswith("matvec") and line.endswith("0% ok") for line in lines)
