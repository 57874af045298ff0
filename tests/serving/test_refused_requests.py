"""Requests that are wrong, too large, too slow or too many get 4xx, and disturb nobody."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from rwkv_train.inference.sampling import SamplingOptions
from rwkv_train.serving.served_model import ServingLimits
from tests.serving.running import BYTES, Running, running_server, text_alone

LIMITS = ServingLimits(
    places=4,
    queue=2,
    prompt_tokens=200,
    answer_tokens=3000,
    body_bytes=5000,
    body_seconds=1.0,
    request_seconds=20.0,
)
CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HI = {"role": "user", "content": "hi"}
# path, body, the field at fault, words of the message
WRONG = {
    "no messages": (CHAT, {}, "messages", "list of messages"),
    "an empty conversation": (CHAT, {"messages": []}, "messages", "empty list"),
    "a message without a role": (CHAT, {"messages": [{"content": "x"}]}, "messages", "role"),
    "an unknown role": (CHAT, {"messages": [{**HI, "role": "poet"}]}, "messages", "'poet'"),
    "a late system": (CHAT, {"messages": [HI, {**HI, "role": "system"}]}, "messages", "first"),
    "an empty message": (CHAT, {"messages": [{**HI, "content": " "}]}, "messages", "empty"),
    "an image": (
        CHAT,
        {"messages": [{**HI, "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages",
        "image_url",
    ),
    "a name": (CHAT, {"messages": [{**HI, "name": "Bo"}]}, "messages[0]", "'name'"),
    "a misspelt field": (CHAT, {"messages": [HI], "temprature": 1}, "temprature", "temperature"),
    "JSON mode": (
        CHAT,
        {"messages": [HI], "response_format": {"type": "json_object"}},
        "response_format",
        "not supported",
    ),
    "no tools": (CHAT, {"messages": [HI], "tool_choice": "required"}, "tools", "no tools"),
    "another tool": (
        CHAT,
        {"messages": [HI], "tools": [{"name": "a"}], "tool_choice": {"function": {"name": "b"}}},
        "tool_choice",
        "a function of 'tools'",
    ),
    "an unknown thought": (CHAT, {"messages": [HI], "think": "hard"}, "think", "a lot"),
    "too hot": (TEXT, {"prompt": "x", "temperature": 900}, "temperature", "between 0 and 100"),
    "no penalty": (TEXT, {"prompt": "x", "presence_penalty": -1e39}, "presence_penalty", "-100"),
    "a truth for a number": (TEXT, {"prompt": "x", "top_p": True}, "top_p", "a number"),
    "no tokens": (TEXT, {"prompt": "x", "max_tokens": 0}, "max_tokens", "between 1"),
    "too many tokens": (TEXT, {"prompt": "x", "max_tokens": 3001}, "max_tokens", "at most 3000"),
    "too many texts": (TEXT, {"prompt": ["x", "y"], "n": 3}, "n", "at most 4"),
    "many stops": (TEXT, {"prompt": "x", "stop": list("abcde")}, "stop", "up to 4"),
    "an empty stop": (TEXT, {"prompt": "x", "stop": ""}, "stop", "none empty"),
    "a long prompt": (TEXT, {"prompt": "x" * 201}, "prompt", "at most 200"),
    "no such token": (TEXT, {"prompt": [1, 257]}, "prompt", "257 is no token"),
    "no chances": (CHAT, {"messages": [HI], "top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
    "an echo": (TEXT, {"prompt": "x", "echo": True}, "echo", "not supported"),
    "a bias": (TEXT, {"prompt": "x", "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
    "a seed in words": (TEXT, {"prompt": "x", "seed": "one"}, "seed", "whole number"),
    "options without a stream": (
        TEXT,
        {"prompt": "x", "stream_options": {"include_usage": True}},
        "stream_options",
        "'stream': true",
    ),
    "nothing to embed": (VECTORS, {}, "input", "missing"),
    "an empty list": (VECTORS, {"input": []}, "input", "empty"),
    "other dimensions": (VECTORS, {"input": "x", "dimensions": 32}, "dimensions", "give 64"),
    "an unknown format": (VECTORS, {"input": "x", "encoding_format": "hex"}, "encoding_format", ""),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server(limits=LIMITS) as running:
        yield running


@pytest.fixture
def undisturbed(server: Running) -> Iterator[None]:
    """Streams one after another meanwhile, which have to be what a single run writes."""
    found: list[str] = []
    begun, over = threading.Event(), threading.Event()

    def ask() -> None:
        client = server.client()
        while not (begun.is_set() and over.is_set()):
            stream = client.completions.create(
                model="tiny", prompt="calm", max_tokens=60, seed=7, stream=True, top_p=0.9
            )
            text = ""
            for chunk in stream:
                begun.set()
                text += chunk.choices[0].text
            found.append(text)

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(30)
    yield
    over.set()
    thread.join()
    options = SamplingOptions(top_p=0.9)
    expected = text_alone(server.engine, BYTES.encode("calm"), options, 7, 60)
    assert found and set(found) == {expected}


def test_wrong_requests_are_refused_by_name(server: Running, undisturbed):
    for name, (path, body, param, words) in WRONG.items():
        answer = server.post(path, body)
        error = answer.json()["error"]
        assert answer.status_code == 400, name
        assert error["type"] == "invalid_request_error" and error["param"] == param, (name, error)
        assert words in error["message"] and "\n" not in error["message"], (name, error)
    assert server.health()["status"] == "ok"


def test_what_is_no_request_is_refused(server: Running, undisturbed):
    json_type = {"content-type": "application/json"}
    for content, words in (
        (b"{", "not JSON"),
        (b"[1]", "must be a JSON object, found a list"),
        (b'{"prompt": "\xff"}', "not JSON"),
        (b'{"prompt": "\\ud800"}', "not JSON"),
        (b'{"seed": NaN}', "not JSON"),
        (b'{"prompt": ' + b"[" * 2400 + b"]" * 2400 + b"}", ""),
    ):
        answer = server.http.post(server.url + TEXT, content=content, headers=json_type)
        assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
    for method, path, status in (
        ("GET", TEXT, 405),
        ("POST", "/v1/nothing", 404),
        ("GET", "/x", 404),
    ):
        answer = server.http.request(method, server.url + path, headers=json_type)
        assert answer.status_code == status and "/v1/models" in answer.json()["error"]["message"]
    form = server.http.post(server.url + TEXT, data={"prompt": "x"})
    assert form.status_code == 415 and "application/json" in form.json()["error"]["message"]
    other = server.http.get(server.url + "/v1/models", headers={"host": "evil.example"})
    assert other.status_code == 403 and "evil.example" in other.json()["error"]["message"]
    assert raw(server, b"HELLO\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert raw(server, b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000).startswith(b"HTTP/1.1 400 ")


def test_what_is_too_large_is_refused(server: Running, undisturbed):
    answer = server.post(TEXT, {"prompt": "x" * 6000})
    assert answer.status_code == 413 and "5000 bytes" in answer.json()["error"]["message"]
    parts = iter([b'{"prompt": "', *[b"x" * 1000] * 60, b'"}'])
    # Without a length in front, and far beyond what is taken to be polite.
    json_type = {"content-type": "application/json"}
    answer = server.http.post(server.url + TEXT, content=parts, headers=json_type)
    assert answer.status_code == 413


def test_what_is_too_slow_is_refused(server: Running, undisturbed):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    assert raw(server, head).startswith(b"HTTP/1.1 408 ")
    assert raw(server, b"").startswith(b"HTTP/1.1 408 ")
    begun = raw(server, head + b'content-length: 50\r\n\r\n{"prompt": ')
    assert begun.startswith(b"HTTP/1.1 408 ") and b"has not arrived within 1 seconds" in begun


def test_more_than_can_wait_are_sent_away(server: Running):
    server.wait_until_idle()
    # Nobody is let in, so that how fast the others are does not count.
    asked = {"prompt": "x", "max_tokens": 3000, "n": 4, "temperature": 0, "stream": True}
    clients = [httpx.Client(timeout=60) for _ in range(3)]
    threads = [
        threading.Thread(target=hold, args=(client, server.url + TEXT, asked)) for client in clients
    ]
    threads[0].start()
    wait_for(lambda: server.health()["active"] == 4)
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: server.health()["waiting"] == 2)
    answer = server.post(TEXT, {"prompt": "x"})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    with pytest.raises(openai.RateLimitError, match="too many requests wait"):
        server.client().completions.create(model="tiny", prompt="x")
    LEAVE.set()
    for thread in threads:
        thread.join()
    server.wait_until_idle()
    assert server.post(TEXT, {"prompt": "x"}).status_code == 200


def test_an_answer_that_takes_too_long_is_ended_and_said_to_be():
    limits = ServingLimits(request_seconds=0.3)
    with running_server(limits=limits) as server:
        asked = {"prompt": "x", "max_tokens": 4000, "temperature": 0}
        answer = server.post(TEXT, asked)
        assert answer.status_code == 408 and "longer than 0.3 seconds" in answer.text
        stream = server.client().completions.create(model="tiny", stream=True, **asked)
        with pytest.raises(openai.APIError, match=r"longer than 0\.3 seconds"):
            list(stream)
        server.wait_until_idle()


def test_a_fault_of_the_model_ends_the_requests_that_it_concerns(monkeypatch):
    with running_server() as server:
        step = server.engine.step

        def fail(*arguments):
            monkeypatch.setattr(server.engine, "step", step)
            raise MemoryError("no room")

        monkeypatch.setattr(server.engine, "step", fail)
        answer = server.post(TEXT, {"prompt": "x"})
        assert answer.status_code == 500 and "MemoryError" in answer.json()["error"]["message"]
        assert server.post(TEXT, {"prompt": "x"}).status_code == 200


def test_a_fault_in_writing_ends_nobody_whose_prompt_is_still_read(monkeypatch):
    with running_server() as server:
        step = server.engine.step

        def fail_beside_a_reader(*arguments):
            if server.worker.occupied()[0] == 1:
                return step(*arguments)
            monkeypatch.setattr(server.engine, "step", step)
            raise MemoryError("no room")

        monkeypatch.setattr(server.engine, "step", fail_beside_a_reader)
        asked = {"model": "tiny", "prompt": "x", "max_tokens": 4000, "temperature": 0}
        stream = server.client().completions.create(**asked, stream=True)
        next(stream)
        answer = server.post(TEXT, {"prompt": "y" * 1000, "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        with pytest.raises(openai.APIError, match="MemoryError"):
            list(stream)


def test_a_text_is_no_longer_than_the_server_s_limit_where_nothing_is_said():
    with running_server(limits=ServingLimits(answer_tokens=5)) as server:
        answer = server.post(TEXT, {"prompt": "x", "temperature": 0}).json()
        assert answer["usage"]["completion_tokens"] == 5
        assert answer["choices"][0]["finish_reason"] == "length"


def test_a_key_is_asked_for_where_there_is_one():
    with running_server(keys=("secret-1", "secret-2")) as server:
        for key in ("none", "secret-", "secret-11"):
            with pytest.raises(openai.AuthenticationError, match="a key of this server"):
                server.client(api_key=key).models.list()
        assert server.post(TEXT, {"prompt": "x"}).headers["www-authenticate"] == "Bearer"
        for key in ("secret-1", "secret-2"):
            assert server.client(api_key=key).models.list().data[0].id == "tiny"
        # Neither tells anything of the model's texts.
        assert server.http.get(server.url).status_code == server.health()["active"] + 200
        named = server.http.get(server.url + "/health", headers={"host": "some.name"})
        assert named.status_code == 200


LEAVE = threading.Event()


def hold(client: httpx.Client, url: str, asked: dict) -> None:
    """Keeps a stream open until `LEAVE`."""
    with client.stream("POST", url, json=asked) as answer:
        lines = answer.iter_lines()
        while not LEAVE.is_set():
            if next(lines, None) is None:
                return


def wait_for(condition) -> None:
    """Returns when a condition holds; fails after half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def raw(server: Running, sent: bytes) -> bytes:
    """Returns what comes back for some bytes, up to the end of the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(sent)
        found = b""
        while part := connection.recv(4096):
            found += part
        return found
