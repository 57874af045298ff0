"""Answers in OpenAI's forms, as OpenAI's own client reads them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence

import numpy as np
import openai
import pytest
import torch

from rwkv_train.data.chat.rows import Message
from rwkv_train.data.chat.template import WORLD
from rwkv_train.serving.openai_api import text_requests
from rwkv_train.serving.served_model import ServingLimits
from tests.checkout import ROOT
from tests.inference.chat.scripted import Recited
from tests.serving.running import BYTES, Running, running_server

ASKED = [{"role": "system", "content": "Be\n\nbrief."}, {"role": "user", "content": " Hi\r\n"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_server(limits=ServingLimits(answer_tokens=200)) as running:
        yield running


@pytest.fixture
def read_prompts(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model is given to read, request by request."""
    found: list[str] = []
    build = text_requests.TextRequest.jobs

    def jobs(self, *arguments):
        found.extend(BYTES.decode(prompt) for prompt in self.prompts)
        return build(self, *arguments)

    monkeypatch.setattr(text_requests.TextRequest, "jobs", jobs)
    return found


@pytest.fixture
def recite(monkeypatch: pytest.MonkeyPatch):
    """Makes the model write given texts, one after another."""

    def told(*texts: str | Sequence[int]) -> None:
        scripts = iter([BYTES.encode(t) if isinstance(t, str) else t for t in texts])
        monkeypatch.setattr(text_requests, "Sampler", lambda *_: Recited([*next(scripts), 0]))

    return told


def test_a_conversation_is_read_as_training_data_are_and_its_answer_is_cut_out(
    server: Running, recite, read_prompts: list[str]
):
    recite(" Hello there.\n\nUser: me too")
    answer = server.client().chat.completions.create(model="tiny", messages=ASKED)
    assert read_prompts == ["System: Be\nbrief.\n\nUser: Hi\n\nAssistant:"]
    assert answer.object == "chat.completion" and answer.model == "tiny"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello there.")
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    read, wrote = len(read_prompts[0]), len(" Hello there.\n\n")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (read, wrote)


def test_the_next_round_goes_on_from_the_answer_without_reading_it_again(server: Running, recite):
    recite(" A first answer.\n\n", " Second.\n\n")
    client, talk = server.client(), [{"role": "user", "content": "One, please"}]
    first = client.chat.completions.create(model="tiny", messages=talk)
    talk += [{"role": "assistant", "content": first.choices[0].message.content}]
    talk += [{"role": "user", "content": "Another"}]
    usage = client.chat.completions.create(model="tiny", messages=talk).usage
    known = "User: One, please\n\nAssistant: A first answer."
    assert usage.prompt_tokens_details.cached_tokens == len(known)


def test_a_stream_adds_up_to_the_whole_answer(server: Running):
    asked = {"model": "tiny", "messages": ASKED, "seed": 5, "n": 2, "max_tokens": 30, "stop": ["e"]}
    whole = server.client().chat.completions.create(**asked)
    stream = server.client().chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    texts, reasons, usage = ["", ""], ["", ""], []
    for chunk in stream:
        usage += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += choice.finish_reason or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert [u.completion_tokens for u in usage] == [whole.usage.completion_tokens]
    assert texts[0] != texts[1] and "e" not in "".join(texts)


def test_thoughts_and_words_are_told_apart(server: Running, recite, read_prompts: list[str]):
    recite(*[">\nHm.\n\nSo: <b>.\n</think>\n Yes.\n\nUser:"] * 2)
    asked = {"model": "tiny", "messages": ASKED[1:], "reasoning_effort": "low"}
    whole = server.client().chat.completions.create(**asked).choices[0].message
    assert read_prompts == ["User: Hi (think a bit)\n\nAssistant: <think"]
    assert (whole.reasoning_content, whole.content) == ("\nHm.\n\nSo: <b>.\n", "Yes.")
    deltas = [
        chunk.choices[0].delta
        for chunk in server.client().chat.completions.create(**asked, stream=True)
    ]
    assert "".join(delta.content or "" for delta in deltas) == "Yes."
    thought = "".join(getattr(delta, "reasoning_content", "") for delta in deltas)
    assert thought == "\nHm.\n\nSo: <b>.\n"


def test_functions_are_called_and_their_results_answered_in_words(
    server: Running, recite, read_prompts: list[str]
):
    call = '\n{"name":"weather","arguments":{"place":"Rome"}}\n```'
    recite(call, call, " Sunny.\n\n", "\nno call\n```")
    client, talk = server.client(), [{"role": "user", "content": "Rome?"}]
    asked = {"model": "tiny", "messages": talk, "tools": [WEATHER]}
    choice = client.chat.completions.create(**asked).choices[0]
    system = (
        'System: Tools:\n[\n{"name":"weather","description":"Tells it",'
        '"arguments":{"place":{"type":"string"}}}\n]\nReturn only a JSON function call.\n\n'
    )
    assert read_prompts == [f"{system}User: Rome?\n\nAssistant: ```json"]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (called,) = choice.message.tool_calls
    assert called.function.name == "weather"
    assert json.loads(called.function.arguments) == {"place": "Rome"}
    chunks = list(client.chat.completions.create(**asked, stream=True))
    (streamed,) = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    assert streamed.function.name == "weather"
    assert streamed.function.arguments == called.function.arguments
    talk.append(choice.message.model_dump(exclude_none=True))
    talk.append({"role": "tool", "tool_call_id": called.id, "content": "sun"})
    words = client.chat.completions.create(**asked).choices[0]
    assert read_prompts[-1].endswith(
        'Assistant: ```json\n{"name":"weather","arguments":{"place":"Rome"}}\n```\n\n'
        "User: Function output:\nsun\n\nAssistant:"
    )
    assert (words.message.content, words.finish_reason) == ("Sunny.", "stop")
    none = client.chat.completions.create(**{**asked, "messages": talk[:1]}).choices[0]
    assert (none.message.content, none.finish_reason) == ("```json\nno call\n```", "stop")


def test_an_answer_that_is_begun_is_continued(server: Running, recite, read_prompts: list[str]):
    recite(" and more.\n\n")
    talk = [*ASKED[1:], {"role": "assistant", "content": "Some"}]
    answer = server.client().chat.completions.create(model="tiny", messages=talk)
    assert read_prompts == ["User: Hi\n\nAssistant: Some"]
    assert answer.choices[0].message.content == " and more."


def test_the_prompt_is_token_by_token_that_of_the_training_data(server: Running, monkeypatch):
    found = []
    build = text_requests.TextRequest.jobs
    monkeypatch.setattr(
        text_requests.TextRequest,
        "jobs",
        lambda self, *a: found.extend(self.prompts) or build(self, *a),
    )
    talk = [("user", "a\n\n\nb"), ("assistant", "c."), ("user", "d"), ("assistant", "e")]
    messages = [{"role": role, "content": text} for role, text in talk[:3]]
    server.client().chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    segments = WORLD.segments([Message(*turn) for turn in talk])
    trained = [token for segment in segments for token in BYTES.encode(segment.text)]
    answer = BYTES.encode(" e\n\n")
    assert trained == [*found[0], *answer]


def test_chances_are_those_of_the_tokens_that_are_shown(server: Running):
    asked = {"model": "tiny", "prompt": "abc", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    choice = server.client().completions.create(**asked).choices[0]
    state, tokens = server.engine.prefill([BYTES.encode("abc")]), []
    for told in choice.logprobs.token_logprobs:
        logits, states = state
        chances = logits[0].log_softmax(-1)
        tokens.append(int(chances.argmax()))
        assert told == pytest.approx(float(chances.max()), abs=1e-4)
        state = server.engine.step([tokens[-1]], states)
    assert BYTES.decode(tokens) == choice.text
    assert all(len(others) <= 2 for others in choice.logprobs.top_logprobs)
    asked |= {"stream": True}
    chunks = [chunk.choices[0].logprobs for chunk in server.client().completions.create(**asked)]
    streamed = [value for chunk in chunks if chunk for value in chunk.token_logprobs]
    assert streamed == pytest.approx(choice.logprobs.token_logprobs, abs=1e-4)


def test_several_prompts_are_continued_in_order(server: Running):
    asked = {"model": "tiny", "max_tokens": 5, "seed": 4, "temperature": 0}
    both = server.client().completions.create(prompt=["ab", [100, 101, 102]], n=2, **asked)
    alone = server.client().completions.create(prompt=[100, 101, 102], **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[3].text == both.choices[2].text == alone.choices[0].text
    assert both.choices[0].text != alone.choices[0].text
    assert both.usage.prompt_tokens == 5


def test_vectors_are_the_mean_of_the_features_whoever_else_is_read(server: Running):
    texts = ["a short text", "b" * 300, "", "c"]
    found = server.client().embeddings.create(model="tiny", input=texts)
    ids = [BYTES.encode(text) or [0] for text in texts]
    for one, tokens in zip(found.data, ids):
        features, _ = server.engine.model.features(torch.tensor([tokens]))
        mean = features[0].mean(0)
        expected = (mean / mean.norm()).tolist()
        assert one.embedding == pytest.approx(expected, abs=1e-5)
    assert found.usage.prompt_tokens == sum(map(len, ids))
    asked = {"model": "tiny", "input": texts[0], "encoding_format": "base64"}
    packed = server.post("/v1/embeddings", asked).json()["data"][0]["embedding"]
    numbers = np.frombuffer(base64.b64decode(packed), "<f4")
    assert numbers.tolist() == pytest.approx(found.data[0].embedding, abs=1e-6)


def test_the_model_is_listed_and_no_other_is_known(server: Running):
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "rwkv-serve"
    with pytest.raises(openai.NotFoundError, match="only the model 'tiny'"):
        client.models.retrieve("other/model")
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.completions.create(model="other", prompt="x")


def test_the_documented_code_prints_an_answer(server: Running, recite, capsys):
    recite(" It scatters.\n\n")
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert "http://127.0.0.1:8000" in code
    exec(code.replace("http://127.0.0.1:8000", server.url), {})
    assert capsys.readouterr().out == "It scatters."


def test_the_page_needs_nothing_from_elsewhere(server: Running):
    page = server.http.get(server.url)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "://" not in page.text and "@import" not in page.text
