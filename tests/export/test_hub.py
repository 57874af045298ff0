"""An upload is listed and agreed to before, and arrives whole; the hub is a server of the test."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from rwkv_train.checkpoint.weights import save_weights
from rwkv_train.errors import CheckpointError, ConfigError
from rwkv_train.export.__main__ import main
from rwkv_train.export.hub import push_uploads, require_hub, uploads_of
from tests.export.exported_models import random_weights

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is missing")
REPOSITORY = "someone/model"


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload of small files needs."""

    def log_message(self, *words):
        """Keeps quiet."""

    def do_POST(self):
        """Takes a repository, tells that files travel in the commit, takes the commit."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.server.refuses:
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer(200, {"url": f"{self.server.url}/{REPOSITORY}"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.received[line["value"]["path"]] = content
            url = f"{self.server.url}/{REPOSITORY}/commit/0123"
            self.answer(200, {"commitUrl": url, "commitOid": "0123", "hookOutput": ""})
        else:
            self.answer(200, {"errors": [], "warnings": []})

    def do_GET(self):
        """Knows no other question."""
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.answer(404, {"error": "not found"})

    def answer(self, status: int, content: dict) -> None:
        """Sends JSON."""
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.asked, server.received, server.created, server.refuses = [], {}, None, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "rwkv"}\n')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 5000)
    (folder / "README.md").write_text("---\nlicense: unknown\n---\n# hf\n")
    return folder


def push(hub, folder: Path, **arguments) -> bool:
    return push_uploads(
        uploads_of(folder, None),
        REPOSITORY,
        out=folder,
        **{"private": True, "agreed": False, "endpoint": hub.url, "token": "hf_x", **arguments},
    )


def test_all_files_arrive_in_one_commit(hub, exported: Path, capsys):
    assert push(hub, exported, ask=lambda question: "y")
    assert hub.received == {path.name: path.read_bytes() for path in exported.iterdir()}
    assert hub.created["name"] == "model" and hub.created["organization"] == "someone"
    private = hub.created.get("private") is True or hub.created.get("visibility") == "private"
    assert private
    assert all(token == "Bearer hf_x" for _, token in hub.asked)
    said = capsys.readouterr().out
    assert "1,280,000 bytes  model.safetensors" in said and "1,280,053 bytes  in all" in said
    assert said.splitlines()[-1] == f"uploaded: {hub.url}/{REPOSITORY}/commit/0123"


@pytest.mark.parametrize("answer", ["", "n", "no", "upload"])
def test_nothing_is_sent_without_a_yes(hub, exported: Path, answer: str, capsys):
    assert not push(hub, exported, ask=lambda question: answer)
    assert hub.asked == []
    assert "nothing was uploaded" in capsys.readouterr().out


def test_the_end_of_the_input_is_no_yes(hub, exported: Path):
    def ask(question: str) -> str:
        raise EOFError

    assert not push(hub, exported, ask=ask)
    assert hub.asked == []


def test_yes_uploads_without_asking_and_public_is_public(hub, exported: Path):
    assert push(hub, exported, agreed=True, private=False, ask=None)
    assert hub.created.get("private") is not True
    assert hub.created.get("visibility") in (None, "public")
    assert len(hub.received) == 3


def test_a_refusal_of_the_hub_is_one_error_that_says_how_to_go_on(hub, exported: Path):
    hub.refuses = True
    with pytest.raises(
        CheckpointError, match=r"--hub_push someone/model failed: .*hf auth login.*hf$"
    ):
        push(hub, exported, agreed=True)
    assert hub.received == {}


def test_no_hub_at_all_is_one_error(hub, exported: Path):
    with pytest.raises(CheckpointError, match="the export itself is complete"):
        push(hub, exported, agreed=True, endpoint="http://127.0.0.1:9")


def test_the_program_uploads_what_it_wrote(hub, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_y")
    save_weights(tmp_path / "m.pth", random_weights("6").state_dict(), torch.float32)
    words = ["--load_model", tmp_path / "m.pth", "--to", "safetensors", "--check", "0"]
    words += ["--output", tmp_path / "x.safetensors", "--hub_push", REPOSITORY, "--yes"]
    assert main([str(word) for word in words]) == 0
    assert hub.received == {
        "x.safetensors": (tmp_path / "x.safetensors").read_bytes(),
        "README.md": (tmp_path / "x.safetensors.README.md").read_bytes(),
    }
    assert capsys.readouterr().out.splitlines()[-1].startswith("uploaded: ")


def test_a_file_goes_with_its_card(tmp_path: Path):
    (tmp_path / "m.gguf").write_bytes(b"x")
    (tmp_path / "m.README.md").write_text("# m")
    uploads = uploads_of(tmp_path / "m.gguf", tmp_path / "m.README.md")
    assert [upload.name for upload in uploads] == ["m.gguf", "README.md"]


@pytest.mark.parametrize("name", ["model", "a/b/c", "/b", "a/"])
def test_a_wrong_repository_is_refused(name: str):
    with pytest.raises(ConfigError, match="is no repository; give OWNER/NAME"):
        require_hub(name, agreed=True)


@pytest.mark.parametrize("name", ["a/b c", "a--b/c", "ä/b", "a/b.git"])
def test_a_name_that_the_hub_would_refuse_is_refused_before_the_work(name: str):
    with pytest.raises(ConfigError, match=f"{name} is no name that the hub takes: "):
        require_hub(name, agreed=True)


def test_without_a_terminal_a_yes_must_be_given(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ConfigError, match="no terminal to answer at; give --yes"):
        require_hub("a/b", agreed=False)
    require_hub("a/b", agreed=True)
