"""The program: wrong command lines, its end by a signal, being killed and started again."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import torch

from rwkv_train.serving.__main__ import main as serve
from tests.models.tiny import tiny_model

M = "--load_model {model}"
WRONG = {
    "no model": ("", ["--load_model"]),
    "a missing model": ("--load_model gone.pth", ["gone.pth"]),
    "a misspelt flag": (f"{M} --api_keys x", ["--api_keys", "--api_key"]),
    "everybody": (f"{M} --host 0.0.0.0", ["0.0.0.0", "key is needed", "--api_key_file"]),
    "everybody by name": (f"{M} --host some.name", ["some.name", "key is needed"]),
    "no address": (f"{M} --host no.such.name.invalid --api_key k", ["--host", "no address"]),
    "no port": (f"{M} --port 70000", ["--port 70000", "65535"]),
    "a port that is taken": (f"{M} --port {{taken}}", ["cannot listen", "{taken}", "--port"]),
    "an empty key": (f"{M} --api_key=", ["a key must be"]),
    "a key in words": (f"{M} --api_key_file {{words}}", ["a key must be", "without spaces"]),
    "no keys": (f"{M} --api_key_file {{empty}}", ["empty.txt", "no key"]),
    "no file of keys": (f"{M} --api_key_file gone.txt", ["gone.txt", "cannot be read"]),
    "a name and a key": (f"{M} --api_key k --allowed_host n", ["--allowed_host n", "leave it out"]),
    "no places": (f"{M} --max_concurrent 0", ["--max_concurrent 0", "at least 1"]),
    "no body": (f"{M} --max_body_bytes 5", ["--max_body_bytes 5", "at least 1024"]),
    "a negative cache": (f"{M} --cache_mb -1", ["--cache_mb -1", "at least 0"]),
    "an unknown thought": (f"{M} --think deeply", ["think 'deeply'", "a lot"]),
    "no template": (f"{M} --chat_template gone.yaml", ["gone.yaml", "world"]),
    "too hot": (f"{M} --temperature 900 --port 0", ["--temperature 900", "between"]),
    "an unknown pooling": (f"{M} --pooling max", ["--pooling", "mean"]),
    "words": (f"{M} hello", ["hello"]),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    folder = tmp_path_factory.mktemp("serve")
    names = {"model": "rwkv-final.pth", "words": "words.txt", "empty": "empty.txt"}
    found: dict[str, object] = {name: folder / file for name, file in names.items()}
    torch.save(tiny_model("7", vocab_size=257, n_embd=32).state_dict(), folder / names["model"])
    (folder / "words.txt").write_text("a sentence\n")
    (folder / "empty.txt").write_text("\n\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield found | {"taken": taken.getsockname()[1]}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_command_lines_are_refused_in_a_line(capfd, places: dict, name: str):
    line, expected = WRONG[name]
    try:
        status = serve(line.format(**places).split())
    except SystemExit as leaving:
        status = leaving.code
    out, err = capfd.readouterr()
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word.format(**places) in err for word in expected), err


def test_a_missing_library_is_named_with_the_extra_that_brings_it(capfd, places, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "rwkv_train.serving.server_process", raising=False)
    assert serve(M.format(**places).split()) == 2
    said = capfd.readouterr().err
    assert "rwkv-serve needs the Python package uvicorn" in said and "rwkv-train[serve]" in said


@contextmanager
def process(model: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yields a server of its own, and its port, as soon as it listens."""
    words = [sys.executable, "-m", "rwkv_train.serving", "--load_model", str(model)]
    words += ["--port", str(port), "--shutdown_seconds", "60"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as started:
        try:
            assert started.stdout is not None
            first = started.stdout.readline()
            found = re.match(r"serving rwkv-final at http://127\.0\.0\.1:(\d+) ", first)
            assert found, first
            yield started, int(found[1])
        finally:
            started.kill()


def test_it_ends_after_what_was_begun_and_starts_again_after_being_killed(places: dict):
    asked = {"model": "rwkv-final", "prompt": "x", "seed": 1, "temperature": 0, "max_tokens": 400}

    def client(port: int) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0)

    with process(places["model"], 0) as (first, port):
        stream = client(port).completions.create(**asked, stream=True)
        begun = next(stream).choices[0].text
        first.kill()
        # What had arrived is still given out.
        with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
            while True:
                next(stream)
        first.wait(30)
    with process(places["model"], port) as (second, same_port):
        assert same_port == port
        stream = client(port).completions.create(**asked, stream=True)
        text = next(stream).choices[0].text
        assert text.startswith(begun) or begun.startswith(text)
        second.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert second.wait(60) == 0
        with pytest.raises(openai.APIConnectionError):
            client(port).models.list()
        said = second.stderr.read()
        assert said.count("\n") == 1 and "wrote 400 in" in said, said
