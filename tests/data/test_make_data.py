"""The two programs as a user runs them: status, one clear line, files, flags."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import pytest

import make_data
from rwkv_train.data.binidx.reader import Binidx
from rwkv_train.data.binidx.writer import BinidxWriter
from tests.checkout import ROOT


def program(name, *arguments, cwd, **keywords):
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **keywords)


def jsonl(folder, count, name="corpus.jsonl"):
    lines = [json.dumps({"text": f"document {i} " * 5}) for i in range(count)]
    (folder / name).write_text("\n".join(lines))


def test_the_positional_command_line_makes_the_pair_in_the_current_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    jsonl(tmp_path / "in", 40)
    done = program("make_data.py", "../in/corpus.jsonl", 3, 64, cwd=tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["corpus.bin", "corpus.idx", "corpus.manifest.json"]
    pair = Binidx(tmp_path / "out" / "corpus")
    assert pair.item_count == 120
    assert f"corpus: 120 documents, {pair.tokens} tokens" in done.stdout
    flags = done.stdout.splitlines()[-1].split()
    assert flags[:4] == ["--data_file", "corpus", "--my_exit_tokens", str(pair.tokens)]
    assert flags[4] == "--magic_prime"
    assert flags[6:] == ["--ctx_len", "64", "--vocab_size", "65536"]

    computed = program("compute_magic_prime.py", "corpus", 64, cwd=tmp_path / "out")
    assert (computed.returncode, computed.stdout.split()) == (0, flags)


def test_options_reach_the_conversion(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"body": "b"}\n{"body": "a"}\n{"body": "c"}')
    done = program(
        *("make_data.py", "corpus.jsonl", 2, 1, "--text_key", "body", "--no_shuffle"),
        *("--tokenizer", "bytes", "--output", "new/a b", "--validation", 0.4, "--seed", 3),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    train, val = Binidx(tmp_path / "new/a b"), Binidx(tmp_path / "new/a b_val")
    assert (train.item_count, val.item_count) == (4, 1)
    # The bytes of b, a, c and 1 more, one of them held out, the others twice in the file's order.
    first, second = (letter for letter in (99, 98, 100) if letter != val.get(0, 1)[0])
    assert train.get(0, 8).tolist() == [first, 0, second, 0] * 2
    assert "--data_file 'new/a b' --my_exit_tokens 8 --magic_prime 5 --ctx_len 1" in done.stdout
    assert done.stdout.rstrip().endswith("--vocab_size 257 --val_data_file 'new/a b_val'")


def test_data_too_small_for_the_context_length_is_made_with_advice(tmp_path):
    jsonl(tmp_path, 3)
    done = program("make_data.py", "corpus.jsonl", 1, 4096, cwd=tmp_path)
    tokens = Binidx(tmp_path / "corpus").tokens
    assert done.returncode == 0
    assert f"use --ctx_len {tokens // 3} or less" in done.stdout.splitlines()[-1]
    computed = program("compute_magic_prime.py", "corpus", 4096, cwd=tmp_path)
    assert computed.returncode == 2
    assert computed.stderr.startswith("error: the data holds") and computed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl", 1, 64], "error: missing.jsonl: there is no such file"),
        (["bad.jsonl", 1, 64], "error: bad.jsonl, line 2: not JSON"),
        (["good.jsonl", 0, 64], "error: REPEATS is 0"),
        (["good.jsonl", 1, 0], "error: CTX_LEN is 0"),
        (["good.jsonl", "many", 64], "error: argument REPEATS"),
        (["good.jsonl"], "error: the following arguments are required: REPEATS, CTX_LEN"),
        (["good.jsonl", 1, 64, "--shuffel"], "error: unrecognized arguments: --shuffel"),
        (["good.jsonl", 1, 64, "--output", "good.jsonl/x"], "error: cannot write good.jsonl/x"),
    ],
)
def test_a_mistake_ends_with_status_2_one_line_and_no_files(arguments, message, tmp_path):
    jsonl(tmp_path, 3, "good.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    done = program("make_data.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "good.jsonl"]


def test_a_full_disk_ends_with_status_2_and_no_files(tmp_path):
    jsonl(tmp_path, 2000)
    # A limit on file sizes makes a write fail the way a full disk does.
    done = program(
        *("make_data.py", "corpus.jsonl", 1, 64),
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write corpus: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_program_leaves_no_files(signal_number, tmp_path, monkeypatch, capsys):
    jsonl(tmp_path, 5)
    monkeypatch.chdir(tmp_path)

    def interrupt(self, *documents):
        # Written by the real method before the signal comes.
        append(self, *documents)
        os.kill(os.getpid(), signal_number)

    append = BinidxWriter.append_documents
    monkeypatch.setattr(BinidxWriter, "append_documents", interrupt)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        status = make_data.main(["corpus.jsonl", "1", "64"])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert status == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_parts_are_made_merged_verified_and_inspected(tmp_path):
    jsonl(tmp_path, 40)
    line = ["corpus.jsonl", 2, 64, "--output", "o/data", "--min_tokens", 3]
    for worker in range(2):
        done = program("make_data.py", *line, "--worker", worker, "--of", 2, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "join all parts with make_data.py --merge" in done.stdout
    parts = [path.relative_to(tmp_path) for path in sorted((tmp_path / "o").glob("*part*.json"))]
    merged = program("make_data.py", "--merge", *parts, "-o", "joined", cwd=tmp_path)
    assert (merged.returncode, merged.stderr) == (0, "")
    whole = program("make_data.py", *line, "--report", "lengths.png", cwd=tmp_path)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert (tmp_path / "lengths.png").stat().st_size > 1000
    assert (tmp_path / "joined.bin").read_bytes() == (tmp_path / "o/data.bin").read_bytes()
    for tool, answer in (
        ("--inspect", "manifest: fits"),
        ("--verify_pair", "are right"),
        ("--verify", "are right"),
    ):
        done = program("make_data.py", tool, "joined", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert answer in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--merge", "a", "b"], "error: --merge needs --output"),
        (["--inspect", "a", "--verify_pair", "b"], "error: argument --verify_pair: not allowed"),
        (["--inspect", "a", "--overwrite"], "error: --output, --tokenizer, --shard_tokens and"),
        (["--inspect", "a", "--verify", "all"], "error: --verify belongs to --verify_pair"),
        (["--inspect", "a"], "error: a.idx does not exist"),
        (["corpus.jsonl", 1, 64, "--worker", 1], "error: --worker and --of belong together"),
        (["corpus.jsonl", 1, 64, "--workers", 0], "error: --workers is 0"),
        (["corpus.jsonl", "corpus.jsonl", 1, 64], "error: --output PREFIX is needed"),
    ],
)
def test_a_wrong_use_of_the_tools_ends_with_status_2_and_one_line(arguments, message, tmp_path):
    jsonl(tmp_path, 3)
    done = program("make_data.py", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_help_imports_no_numpy(tmp_path):
    code = (
        "import sys; from rwkv_train.data.make_data_flags import parse\n"
        "try: parse(['--help'])\n"
        "except SystemExit: print('numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--validation SHARE" in done.stdout
    assert done.stdout.endswith("False\n")
