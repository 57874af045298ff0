"""rwkv-report tells faults in one line, and overwrites nothing but pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_train.report.__main__ import main
from tests.report.made_runs import make_full_run, make_run, step_record


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs and some other things."""
    folder = tmp_path_factory.mktemp("runs")
    make_full_run(folder / "one")
    make_run(folder / "two", [step_record(n) for n in range(9)])
    (folder / "empty").mkdir()
    (folder / "file.txt").write_text("mine")
    (folder / "mine.html").write_text("<p>mine</p>")
    return folder


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["none"], "none does not exist; give the folder that --proj_dir"),
        (["file.txt"], "file.txt is a file; give the folder"),
        (["empty"], "empty holds no run: it has no metrics.jsonl"),
        (["one", "two"], "2 runs are compared in a page of their own: give --output"),
        (["one", "./one", "--output", "x.html"], "a run is given twice"),
        (["one", "--output", "empty"], "--output empty is a folder; give a file, such as empty/"),
        (["one", "--output", "no/x.html"], "there is no folder no; make it first"),
        (["one", "--output", "file.txt"], "would be a page of HTML; give a name ending in .html"),
        (
            ["one", "--ouput", "x.html"],
            "unrecognized arguments: --ouput; perhaps you meant --output",
        ),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_a_fault_is_one_line_and_nothing_is_written(
    runs: Path, words: list[str], expected: str, monkeypatch, capsys
):
    monkeypatch.chdir(runs)
    before = sorted(runs.rglob("*"))
    try:
        status = main(words)
    except SystemExit as left:
        status = left.code
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 2 and line.startswith("error: ") and expected in line
    assert sorted(runs.rglob("*")) == before and (runs / "file.txt").read_text() == "mine"


def test_a_page_that_cannot_be_written_is_a_fault_in_one_line(runs: Path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rwkv_train.report.page_file.write_atomically", full)
    assert main([str(runs / "one")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("report.html: No space left on device")


def test_it_says_how_the_run_compares_and_where_the_page_is(runs: Path, tmp_path: Path, capsys):
    output = tmp_path / "page.html"
    for run in ("one", "two"):
        capsys.readouterr()
        assert main([str(runs / run), "--output", str(output)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"wrote {output}: open it in a browser" and len(said) == 2
    assert "<title>two: RWKV-6" in output.read_text()
    assert not (runs / "two" / "report.html").exists()


def test_the_layer_works_without_torch_and_matplotlib(runs: Path):
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'matplotlib'))); "
    call = f"from rwkv_train.report.__main__ import main; main([{str(runs / 'one')!r}])"
    ended = subprocess.run([sys.executable, "-c", blocked + call], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "wrote" in ended.stdout
