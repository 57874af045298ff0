"""A server of a tiny model in a thread of the test's process, and texts to compare its with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import httpx
import openai

from rwkv_train.data.chat.template import WORLD
from rwkv_train.data.tokenize.tokenizer import BytesTokenizer
from rwkv_train.inference.engine.engine import Engine
from rwkv_train.inference.sampling import Sampler, SamplingOptions, sequence_generator
from rwkv_train.inference.writing import TextWriter
from rwkv_train.inference.writing_together import ReadSequence, WrittenTexts
from rwkv_train.serving.application import ModelApplication
from rwkv_train.serving.batching.batch_worker import BatchWorker
from rwkv_train.serving.batching.prefix_cache import PrefixCache
from rwkv_train.serving.served_model import ServedModel, ServingLimits
from rwkv_train.serving.server_process import bound_socket, build_server
from tests.models.tiny import tiny_model

BYTES = BytesTokenizer()
NAMES = ("127.0.0.1", "localhost")


@dataclass
class Running:
    """A server that answers.

    lines: what it has said about requests.  http: a client for plain requests.
    """

    url: str
    engine: Engine
    worker: BatchWorker
    lines: list[str]
    http: httpx.Client

    def client(self, **options: Any) -> openai.OpenAI:
        """Returns a client of OpenAI's library, which does not try again by itself."""
        return openai.OpenAI(**self._options(options))

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """Returns the same for an event loop."""
        return openai.AsyncOpenAI(**self._options(options))

    def post(self, path: str, content: Any, **options: Any) -> httpx.Response:
        """Returns the answer to an object sent as JSON."""
        return self.http.post(self.url + path, json=content, **options)

    def health(self) -> dict[str, Any]:
        """Returns what the server says of itself."""
        found: dict[str, Any] = self.http.get(self.url + "/health").json()
        return found

    def wait_until_idle(self) -> None:
        """Returns when no place is taken; fails after half a minute."""
        deadline = time.monotonic() + 30
        while (now := self.health())["active"] or now["waiting"]:
            assert time.monotonic() < deadline, now
            time.sleep(0.02)

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        usual = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60}
        return usual | options


@contextmanager
def running_server(
    *, limits: ServingLimits | None = None, keys: Sequence[str] = (), **served: Any
) -> Iterator[Running]:
    """Yields a server of a tiny RWKV-7 in fp32, whose tokens are bytes; ends it afterwards."""
    engine = Engine(tiny_model("7", vocab_size=257), piece_tokens=64)
    model = ServedModel(
        name="tiny",
        tokenizer=BYTES,
        template=WORLD,
        width=64,
        fingerprint="rwkv_test",
        created=0,
        limits=limits or ServingLimits(),
        **served,
    )
    worker = BatchWorker(
        engine, places=model.limits.places, queue=model.limits.queue, cache=PrefixCache(4 << 20)
    )
    lines: list[str] = []
    app = ModelApplication(model, worker, lines.append).asgi(tuple(keys), () if keys else NAMES)
    listening = bound_socket("127.0.0.1", 0)
    server = build_server(app, model.limits, shutdown_seconds=5)
    thread = Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    port = listening.getsockname()[1]
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server has not started"
            time.sleep(0.01)
        with httpx.Client(timeout=60) as http:
            yield Running(f"http://127.0.0.1:{port}", engine, worker, lines, http)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive(), "the server has not ended"
    assert not worker.alive


def text_alone(
    engine: Engine, prompt: Sequence[int], options: SamplingOptions, seed: int, max_tokens: int
) -> str:
    """Returns what the model writes when nobody else is there, read at once."""
    logits, (state,) = engine.prefill([prompt])
    sampler = Sampler(options, sequence_generator(seed))
    writer = TextWriter(BYTES, sampler, max_tokens=max_tokens, last_tokens=prompt)
    written = WrittenTexts(engine, BYTES, [ReadSequence(state, logits[0])], [writer])
    return "".join(piece for _, piece in written.pieces())
