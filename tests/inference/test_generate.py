"""Generation says what the parallel forward pass says, token by token."""

from __future__ import annotations

import pytest
import torch

from rwkv_train.data.tokenize.tokenizer import BytesTokenizer
from rwkv_train.inference.generate import generate_text, generate_tokens, prefill
from rwkv_train.inference.sampling import Sampler, SamplingOptions
from tests.helpers import assert_close
from tests.models.tiny import VERSIONS, random_tokens, tiny_model

BYTES = BytesTokenizer()


class Recited:
    """Stands in for a Sampler: gives the tokens it was given, and keeps the logits it saw."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)
        self.logits: list[torch.Tensor] = []

    def draw(self, logits: torch.Tensor) -> int:
        self.logits.append(logits)
        return next(self._tokens)


def sampler(seed: int | None = None, **options: float) -> Sampler:
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    return Sampler(SamplingOptions(**options), generator)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_logits_while_generating_are_those_of_the_parallel_pass(version: str):
    model = tiny_model(version).double()
    tokens = random_tokens(1, 30, seed=5)[0].clamp(min=1).tolist()
    prompt, rest = tokens[:12], tokens[12:]
    recited = Recited(rest)
    assert list(generate_tokens(model, prompt, recited, len(rest))) == rest
    with torch.no_grad():
        parallel, _ = model(torch.tensor([tokens]))
    # the logits after token t choose token t + 1
    assert_close("logits", torch.stack(recited.logits), parallel[0, 11:-1], 1e-10)


@pytest.mark.parametrize("version", VERSIONS)
def test_without_temperature_every_token_is_the_likeliest_one(version: str):
    model = tiny_model(version)
    prompt = [3, 1, 4, 1, 5]
    found = list(generate_tokens(model, prompt, sampler(temperature=0.0), 20))
    assert found
    with torch.no_grad():
        logits, _ = model(torch.tensor([prompt + found]))
    assert found == logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()


def test_the_end_of_document_ends_the_text():
    recited = Recited([7, 8, 0, 9])
    assert list(generate_tokens(tiny_model("6"), [1], recited, 10)) == [7, 8]


def test_no_more_tokens_come_than_were_asked_for():
    assert list(generate_tokens(tiny_model("7"), [1], Recited([2] * 9), 4)) == [2] * 4
    assert list(generate_tokens(tiny_model("7"), [1], Recited([]), 0)) == []


def test_an_empty_prompt_is_the_start_of_a_document():
    recited = Recited([5])
    model = tiny_model("5")
    list(generate_tokens(model, [], recited, 1))
    expected, _ = prefill(model, [0])
    assert torch.equal(recited.logits[0], expected)


def test_the_text_comes_in_whole_characters():
    model = tiny_model("6", vocab_size=257)
    ids = BYTES.encode("naïve 世界")
    found = list(generate_text(model, BYTES, "a ", Recited([*ids, 0]), 99))
    assert found == [*"naïve 世界"]


def test_tokens_beyond_the_vocabulary_are_passed_over():
    model = tiny_model("4", vocab_size=300)
    assert list(generate_text(model, BYTES, "", Recited([299, 98, 257, 99, 0]), 9)) == ["a", "b"]


@pytest.mark.parametrize("version", VERSIONS)
def test_one_seed_repeats_a_text_and_another_gives_another(version: str):
    model = tiny_model(version, vocab_size=257)

    def text(seed: int) -> str:
        return "".join(generate_text(model, BYTES, "x", sampler(seed, top_p=0.95), 30))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_several_samples_of_one_seed_differ_from_each_other():
    model = tiny_model("7", vocab_size=257)
    generator = torch.Generator().manual_seed(4)
    texts = [
        "".join(generate_text(model, BYTES, "x", Sampler(SamplingOptions(), generator), 30))
        for _ in range(3)
    ]
    assert len(set(texts)) == 3
