"""The demo corpus: real sources, in a fixed order, capped, one document a file."""

from __future__ import annotations

import hashlib

import pytest

from rwkv_train.data.text.demo_corpus import (
    build_corpus,
    documents,
    main,
    standard_library,
    write_corpus,
)
from rwkv_train.data.text.jsonl import document_text
from rwkv_train.errors import DataError


def library(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def source(name, size=400):
    return (f"# {name} ä\n" * size)[:size]


def test_only_readable_sources_of_the_library_itself_are_taken(tmp_path):
    wanted = {name: source(name) for name in ("os.py", "json/decoder.py", "notes.txt", "a/b/c.rst")}
    unwanted = {
        name: source(name)
        for name in (
            "site-packages/numpy/core.py",
            "dist-packages/apt.py",
            "test/test_os.py",
            "json/tests/case.py",
            "encodings/cp037.py",
            "__pycache__/os.py",
            "_sysconfigdata__linux.py",
            "lib.so",
            "image.gif",
        )
    }
    latin = {"latin.py": b"# \xe9\xe8" * 100, "empty.py": "", "huge.py": "x = 1\n" * 60_000}
    library(tmp_path, wanted | unwanted | latin)
    (tmp_path / "link.py").symlink_to(tmp_path / "os.py")
    assert sorted(documents(tmp_path)) == sorted(wanted.values())


def test_files_come_in_the_order_of_their_paths_digests(tmp_path):
    names = [f"{folder}module{i}.py" for folder in ("", "b/", "a/") for i in range(5)]
    library(tmp_path, {name: source(name) for name in reversed(names)})
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    assert list(documents(tmp_path)) == [source(name) for name in names]


def test_the_corpus_stops_before_its_limit_and_keeps_its_beginning(tmp_path):
    library(tmp_path, {f"m{i}.py": source(f"m{i}", 500) for i in range(20)})
    whole, count, size = build_corpus(tmp_path, 10**6)
    assert (count, whole.count(b"\n")) == (20, 20)
    part, fewer, smaller = build_corpus(tmp_path, size // 2)
    assert fewer in (9, 10)
    assert smaller <= size // 2
    assert whole.startswith(part)


def test_windows_line_ends_and_marks_do_not_reach_the_text(tmp_path):
    text = "line\n" * 100
    library(tmp_path, {"a.py": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()})
    assert list(documents(tmp_path)) == [text]


def test_this_machines_library_gives_a_corpus_that_make_data_can_read(tmp_path, capsys):
    path = tmp_path / "corpus.jsonl"
    assert main([str(path), "--max_megabytes", "1.5"]) == 0
    texts = [document_text(line, "text") for line in path.read_bytes().splitlines()]
    size = sum(len(text.encode()) for text in texts)
    assert 1_200_000 < size <= 1_500_000
    assert f"{len(texts)} files" in capsys.readouterr().out
    content = path.read_bytes()
    assert main([str(path), "--max_megabytes", "1.5"]) == 0
    assert "already there" in capsys.readouterr().out
    assert path.read_bytes() == content == build_corpus(standard_library(), 1_500_000)[0]


def test_an_existing_file_is_not_replaced(tmp_path, capsys):
    path = tmp_path / "corpus.jsonl"
    path.write_text("mine")
    assert main([str(path), "--max_megabytes", "0.5"]) == 2
    assert "exists with other contents" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_a_python_without_its_sources_is_told_apart(tmp_path):
    library(tmp_path / "lib", {"os.py": source("os.py")})
    with pytest.raises(DataError, match=r"only 440 bytes .* jsonl file of your own"):
        write_corpus(tmp_path / "out.jsonl", tmp_path / "lib", 6_000_000)
    assert not (tmp_path / "out.jsonl").exists()
