"""The demo's and the set-up's scripts: any working folder, any text, any machine.

They run in a copy of the checkout; a stand-in for Python records what train.py and generate.py are
given and does the rest for real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT

SCRIPTS = ("demo-training-run.sh", "demo-training-prepare.sh", "set-up-environment.sh")
ALSO = ("check_requirements.py", "make_data.py")
STAND_IN = """#!/bin/sh
case "$*" in
    train.py*|generate.py*|*"pip install"*) printf '<%s> ' "$@" >> {log}; echo >> {log} ;;
    *check_requirements.py*) exit 0 ;;
    *cuda_toolkit*) echo "$FAKE_CUDA" ;;
    *find_gpus*) [ -z "$FAKE_FAULT" ] || {{ echo "error: $FAKE_FAULT" >&2; exit 2; }}
        echo "$FAKE_GPU" ;;
    *) exec {python} "$@" ;;
esac
"""
if os.name != "posix" or shutil.which("bash") is None:
    pytest.skip("the scripts need bash", allow_module_level=True)


class Copy:
    """A copy of the checkout, and a folder of the user's elsewhere, both with blanks in paths."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.user = folder / "the project", folder / "my texts"
        for place in (self.checkout, self.user, folder / "bin"):
            place.mkdir()
        for file in (*SCRIPTS, *ALSO, *ROOT.glob("requirements*.txt")):
            shutil.copy(ROOT / file, self.checkout)
        (self.checkout / "src").symlink_to(ROOT / "src")
        self.log, self.bin = folder / "log", folder / "bin"
        self.python = self.bin / "python"
        self.python.write_text(STAND_IN.format(log=self.log, python=sys.executable))
        self.python.chmod(0o755)

    def run(
        self, *arguments: str, program: str | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Starts the demo, or `program`, from the user's folder."""
        given = {"PYTHON": str(self.python), "FAKE_GPU": "cpu", "FAKE_CUDA": "", "FAKE_FAULT": ""}
        return subprocess.run(
            ["bash", program or str(self.checkout / SCRIPTS[0]), *arguments],
            cwd=self.user,
            env={
                **os.environ,
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "PYTHONPATH": "",
                **given,
                **variables,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self, what: str) -> list[str]:
        """Lines of the stand-in's log that begin so."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(what)]

    def text(self, name: str, documents: int = 1, characters: int = 40_000, end: str = "\n") -> str:
        row = json.dumps({"text": "some words. " * (characters // 12 // documents)})
        (self.user / name).write_bytes((row + end).encode() * documents)
        return name


@pytest.fixture
def copy(tmp_path) -> Copy:
    return Copy(tmp_path)


def test_one_document_is_trained_from_any_folder(copy):
    done = copy.run(copy.text("my, novel.jsonl"))
    assert done.returncode == 0, done.stderr
    (prepared, trained) = copy.calls("<train.py>")
    assert prepared.endswith("<--train_stage> <1> ") and trained.endswith("<--train_stage> <3> ")
    assert "<--val_split> <0.05>" in trained
    assert "<--data_file> <data/my__novel-bytes>" in trained, "a comma would make it a mixture"
    assert (copy.checkout / "data" / "my__novel-bytes.idx").exists()
    assert f"Report: {str(copy.checkout).replace(' ', chr(92) + ' ')}/out/" in done.stdout


def test_several_documents_with_windows_line_ends_are_held_out_by_document(copy):
    done = copy.run(copy.text("crlf.jsonl", documents=30, end="\r\n"), PROJ_DIR="runs/mine")
    assert done.returncode == 0, done.stderr
    (_, trained) = copy.calls("<train.py>")
    assert "<--val_data_file> <data/crlf-bytes_val>" in trained
    assert f"<--proj_dir> <{copy.user}/runs/mine>" in trained


def test_held_out_documents_shorter_than_a_sample_are_no_validation(copy):
    rows = [{"text": "some words. " * (4000 if n == 0 else 1)} for n in range(20)]
    (copy.user / "uneven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = copy.run("uneven.jsonl")
    assert done.returncode == 0, done.stderr
    assert (copy.checkout / "data" / "uneven-bytes_val.bin").stat().st_size < 2 * 256
    assert "<--val_split> <0.05>" in copy.calls("<train.py>")[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty.jsonl", "empty.jsonl is empty"),
        ("nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("folder", "folder is a folder"),
        ("pipe", "pipe is not a file"),
        ("short.jsonl", "short.jsonl has 601 tokens, too few for samples of 256"),
    ],
)
def test_a_text_that_cannot_be_used_is_told_by_the_name_that_was_given(copy, name, words):
    (copy.user / "empty.jsonl").write_text("\n \n")
    (copy.user / "folder").mkdir()
    os.mkfifo(copy.user / "pipe")
    copy.text("short.jsonl", characters=600)
    done = copy.run(name)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {words}")
    assert "--" not in line
    assert copy.calls("<train.py>") == []
    assert not list(copy.checkout.glob("out/*")) and not list(copy.checkout.glob("data/*"))


def test_another_text_of_the_same_name_is_not_taken_for_the_first(copy):
    assert copy.run(copy.text("a.jsonl")).returncode == 0
    assert copy.run("a.jsonl").returncode == 0
    (copy.user / "other").mkdir()
    copy.text("other/a.jsonl")
    done = copy.run("other/a.jsonl")
    assert done.returncode == 2
    assert "was made from another text" in done.stderr and "rename your file" in done.stderr


def test_a_folder_that_cannot_be_written_is_told(copy):
    (copy.checkout / "data").touch()
    done = copy.run(copy.text("a.jsonl"))
    assert done.returncode == 2
    assert f"{copy.checkout}/data cannot be written" in done.stderr


def test_cards_before_ampere_are_trained_in_fp16(copy):
    text = copy.text("a.jsonl")
    for found, precision in (("gpu fp16", "fp16"), ("gpu bf16", "bf16")):
        done = copy.run(text, FAKE_GPU=found, TOKENIZER="bytes", REPEATS="1", CTX_LEN="256")
        assert done.returncode == 0, done.stderr
        assert f"<--precision> <{precision}>" in copy.calls("<train.py>")[-1]
        assert "<--accelerator> <gpu>" in copy.calls("<train.py>")[-1]


def test_a_card_that_torch_cannot_use_stops_the_demo_unless_the_cpu_is_asked_for(copy):
    text = copy.text("a.jsonl")
    done = copy.run(text, FAKE_FAULT="the driver is too old")
    assert done.returncode == 2
    assert "error: the driver is too old" in done.stderr
    assert "ACCELERATOR=cpu" in done.stderr
    assert copy.run(text, FAKE_FAULT="the driver is too old", ACCELERATOR="cpu").returncode == 0


def set_up(
    copy: Copy, cuda: str, python: str, driver: str = "echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'"
) -> subprocess.CompletedProcess[str]:
    """Sources the set-up on a machine with a card, then looks for a compiler for `python`.

    driver: what nvidia-smi does there.
    """
    card = copy.bin / "nvidia-smi"
    card.write_text(f"#!/bin/sh\n{driver}\n")
    card.chmod(0o755)
    program = copy.checkout / "source.sh"
    program.write_text(
        f'cd "{copy.checkout}"\nset -euo pipefail\n. ./set-up-environment.sh requirements.txt\n'
        f'mkdir -p "{Path(python).parent}"\ncp "{copy.python}" "{python}"\n'
        f"PYTHON={python}\nset_up_cuda_compiler\n"
    )
    return copy.run(program=str(program), FAKE_CUDA=cuda)


@pytest.mark.parametrize(
    ("cuda", "installed"),
    [("13.0", "<-r> <requirements-cuda.txt>"), ("13.2", "<nvidia-cuda-nvcc==13.2.*>"), ("", "")],
)
def test_a_compiler_that_is_missing_beside_a_card_goes_into_our_environment(copy, cuda, installed):
    done = set_up(copy, cuda, ".venv/bin/python")
    assert done.returncode == 0, done.stderr
    calls = copy.calls("<-m> <pip>")
    assert len(calls) == bool(cuda)
    assert not cuda or installed in calls[0]


def test_in_another_environment_the_compiler_is_offered_only(copy):
    done = set_up(copy, "13.0", "theirs/python")
    assert done.returncode == 0
    assert "pip install -r requirements-cuda.txt" in done.stderr
    assert copy.calls("<-m> <pip>") == []


@pytest.mark.parametrize("driver", ["echo 'No devices found.'; exit 6", "exit 127"])
def test_where_no_card_answers_no_compiler_is_installed(copy, driver):
    done = set_up(copy, "13.0", ".venv/bin/python", driver)
    assert (done.returncode, done.stderr) == (0, "")
    assert copy.calls("<-m> <pip>") == []


def test_for_an_older_cuda_the_toolkit_is_named(copy):
    done = set_up(copy, "12.8", ".venv/bin/python")
    assert "install the CUDA toolkit 12.8" in done.stderr
    assert copy.calls("<-m> <pip>") == []


@pytest.mark.parametrize("name", [*SCRIPTS, "run-tests.sh", "train.py", "cuda/sanitize.sh"])
def test_a_checkout_has_unix_line_ends_everywhere(name):
    """Git applies the attributes of the folder, whatever the user's own settings say."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a checkout and git")
    command = ["git", "check-attr", "text", "eol", "--", name]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.endswith("eol: lf\n")


def test_binary_files_are_left_as_they_are():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a checkout and git")
    command = ["git", "check-attr", "text", "--", "tests/vectors/binidx_small.bin"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.endswith("text: unset\n")
