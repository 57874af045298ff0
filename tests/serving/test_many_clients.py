"""Clients that ask at the same time get what each would get alone, and leave no trace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest

from rwkv_train.inference.sampling import SamplingOptions
from rwkv_train.serving.served_model import ServingLimits
from tests.serving.running import BYTES, Running, running_server, text_alone

CLIENTS = 32
TOKENS = 20
SAMPLING = SamplingOptions(
    temperature=1.1, top_p=0.9, presence_penalty=0.3, frequency_penalty=0.1, order="temperature"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server with fewer places than clients, so that some have to wait."""
    with running_server(limits=ServingLimits(places=24)) as running:
        yield running


def prompt_of(number: int) -> str:
    """Texts of very different lengths, of which some begin alike."""
    return "It was a dark and stormy night; " * (number % 5) + f"chapter {number}. " * (
        number % 7 + 1
    )


def tokens_of(number: int) -> int:
    """Lengths that differ, so that clients leave one after another."""
    return TOKENS + number % 10


async def streamed(client, number: int) -> str:
    """What a stream gives, put together."""
    await asyncio.sleep(number % 8 * 0.02)
    stream = await client.completions.create(
        model="tiny",
        prompt=prompt_of(number),
        max_tokens=tokens_of(number),
        seed=number,
        stream=True,
        temperature=SAMPLING.temperature,
        top_p=SAMPLING.top_p,
        presence_penalty=SAMPLING.presence_penalty,
        frequency_penalty=SAMPLING.frequency_penalty,
        stream_options={"include_usage": True},
    )
    pieces, usage, reasons = [], None, []
    async for chunk in stream:
        usage = chunk.usage or usage
        pieces += [choice.text for choice in chunk.choices]
        reasons += [c.finish_reason for c in chunk.choices if c.finish_reason]
    assert len(reasons) == 1
    assert usage is not None and usage.prompt_tokens == len(prompt_of(number))
    assert usage.completion_tokens <= tokens_of(number)
    if reasons == ["length"]:
        assert usage.completion_tokens == tokens_of(number)
    return "".join(pieces)


def test_32_streams_at_once_are_each_what_a_single_run_writes(server: Running):
    async def all_streams() -> list[str]:
        async with server.async_client() as client:
            return await asyncio.gather(*(streamed(client, n) for n in range(CLIENTS)))

    found = asyncio.run(all_streams())
    alone = [
        text_alone(server.engine, BYTES.encode(prompt_of(n)), SAMPLING, n, tokens_of(n))
        for n in range(CLIENTS)
    ]
    assert found == alone
    assert len(set(found)) > CLIENTS // 2
    server.wait_until_idle()


def test_a_second_time_the_prompts_are_known_and_the_texts_the_same(server: Running):
    def answer():
        return server.post(
            "/v1/completions",
            {"prompt": "once more " * 30, "max_tokens": 30, "seed": 3, "temperature": 1},
        ).json()

    first, second = answer(), answer()
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["usage"]["prompt_tokens_details"] == {"cached_tokens": 300}
    assert first["choices"] == second["choices"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(server: Running, stream: bool):
    server.wait_until_idle()
    asked = {"prompt": "and then", "max_tokens": 4000, "n": 20, "stream": stream, "seed": 1}
    # Nothing that ends a text comes up: it would go on for minutes.
    asked |= {"temperature": 0}
    client = httpx.Client(timeout=60)
    if stream:
        with client.stream("POST", f"{server.url}/v1/completions", json=asked) as answer:
            # Kept: httpx closes the answer of lines that nobody holds.
            lines = answer.iter_lines()
            next(lines)
            assert server.health()["active"] == 20
    else:
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{server.url}/v1/completions", json=asked, timeout=0.5)
    client.close()
    start = time.monotonic()
    server.wait_until_idle()
    assert time.monotonic() - start < 20
    assert server.lines[-1].endswith("the client has left")


def test_a_long_prompt_does_not_hold_up_those_who_write(server: Running):
    long_prompt = "a very long document. " * 600

    async def both() -> tuple[list[float], float]:
        async with server.async_client() as client:
            stream = await client.completions.create(
                model="tiny", prompt="x", max_tokens=60, seed=2, stream=True, temperature=0.5
            )
            reading = asyncio.create_task(
                client.completions.create(
                    model="tiny", prompt=long_prompt, max_tokens=1, seed=2, temperature=0
                )
            )
            came = [time.monotonic() async for _ in stream]
            before = reading.done()
            await reading
            assert not before, "the document was read before the short text was written"
            return came, time.monotonic()

    came, read = asyncio.run(both())
    assert len(came) > 20 and came[-1] < read
