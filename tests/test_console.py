"""No console ends a program: work that is done stays done, and what is lost is said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.training.runs import loss_steps

# Prints, works, prints more than any buffer holds, and fails to print half of a surrogate pair.
TOY = """
import sys
from pathlib import Path
from rwkv_train.command_line import printed_status, program

@program
def main(argv):
    print("Grüße \\udcff", flush=True)
    print("warned", file=sys.stderr, flush=True)
    for _ in range(5000):
        print("a line of some length")
    Path(argv[0]).write_text("done")
    return printed_status() if argv[1:] else 0

sys.exit(main(sys.argv[1:]))
"""
FULL = Path("/dev/full")
PROGRAMS = ["train.py", "make_data.py", "generate.py", "compute_magic_prime.py"]
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this machine has no /dev/full")


def shell(line: str, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of shell with {} for Python and $1, $2 ... for the words."""
    return subprocess.run(
        ["bash", "-c", line.replace("{}", sys.executable), "bash", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
    )


@pytest.mark.parametrize(
    ("where", "status", "warnings"),
    [
        ("", 0, 0),
        pytest.param("> /dev/full", 0, 1, marks=needs_full),
        (">&-", 0, 0),
        (">&- 2>&-", 0, 0),
        ("<&- >&- 2>&-", 0, 0),
        pytest.param("2> /dev/full", 0, 0, marks=needs_full),
        pytest.param("&> /dev/full", 0, 0, marks=needs_full),
        ("| head -1; exit ${PIPESTATUS[0]}", 0, 1),
        # its product is what it prints
        ("product | head -1; exit ${PIPESTATUS[0]}", 0, 1),
        pytest.param("product > /dev/full", 1, 1, marks=needs_full),
    ],
)
def test_a_program_works_to_its_end_wherever_it_prints(
    tmp_path: Path, where: str, status: int, warnings: int
):
    ended = shell(f'{{}} -c "$1" "$2" {where}', TOY, tmp_path / "work")
    assert ended.returncode == status, ended
    assert (tmp_path / "work").read_text() == "done"
    assert ended.stderr.count(b"WARNING: standard output cannot be written") == warnings
    assert b"Traceback" not in ended.stderr and b"Exception ignored" not in ended.stderr


def test_characters_that_a_console_lacks_are_spelled_out(tmp_path: Path):
    for environment, first in (
        ({"PYTHONIOENCODING": "ascii"}, rb"Gr\xfc\xdfe \udcff"),
        ({"PYTHONIOENCODING": "utf-8"}, "Grüße \\udcff".encode()),
        ({"PYTHONIOENCODING": "latin-1"}, "Grüße ".encode("latin-1") + rb"\udcff"),
    ):
        ended = shell('{} -c "$1" "$2"', TOY, tmp_path / "work", **environment)
        assert ended.returncode == 0
        assert ended.stdout.splitlines()[0] == first


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_can_be_read_in_part_and_fails_where_it_cannot_be_printed(program: str):
    ended = shell(f"{{}} {program} --help | true; exit ${{PIPESTATUS[0]}}")
    assert (ended.returncode, ended.stderr) == (0, b"")
    if FULL.exists():
        ended = shell(f"{{}} {program} --help > /dev/full")
        assert ended.returncode == 1
        assert ended.stderr.count(b"\n") == 1 and b"No space left" in ended.stderr


@needs_full
def test_data_and_a_run_are_made_on_an_ascii_console_and_a_full_device(tmp_path: Path):
    source, prefix, out = tmp_path / "Grüße.jsonl", tmp_path / "é", tmp_path / "ü"
    source.write_text(json.dumps({"text": "世界 " * 200}) + "\n", encoding="utf-8")
    made = shell(
        '{} make_data.py "$1" 1 32 -o "$2" --tokenizer bytes',
        source,
        prefix,
        PYTHONIOENCODING="ascii",
    )
    assert made.returncode == 0 and made.stderr == b""
    assert rb"\u4e16\u754c" in made.stdout
    line = (
        '{} train.py --data_file "$1" --proj_dir "$2" --n_layer 1 --n_embd 32 --head_size 32'
        " --ctx_len 32 --micro_bsz 2 --max_steps 3 --accelerator cpu --devices 1 --plot 0"
        " --num_workers 0 --wkv_backend chunked > /dev/full"
    )
    ended = shell(line, prefix, out)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(b"\n") == 1 and b"No space left" in ended.stderr
    assert loss_steps(out) == [0, 1, 2] and (out / "rwkv-0.pth").is_file()


def test_a_prompt_is_utf8_whatever_the_console_is_and_refused_when_it_is_not(tmp_path: Path):
    ended = shell("{} generate.py --load_model none.pth $'\\xff'")
    assert (ended.returncode, ended.stderr.count(b"\n")) == (2, 1)
