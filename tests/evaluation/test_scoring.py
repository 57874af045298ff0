"""Log-probabilities: those of one pass over each text, whatever is read together and in pieces."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rwkv_train.evaluation import scoring
from rwkv_train.evaluation.continuations import score_continuations
from rwkv_train.evaluation.scoring import ScoredRow, Scorer
from tests.models.tiny import VERSIONS, tiny_model

Pair = tuple[list[int], list[int]]


def random_pairs(contexts: int = 9) -> list[Pair]:
    """Contexts of 1 to 30 tokens with 1 to 4 continuations each, some of them empty or equal."""
    draw = random.Random(3)
    pairs = []
    for number in range(contexts):
        context = [draw.randrange(50) for _ in range(1 if number < 2 else draw.randrange(1, 31))]
        own = [[draw.randrange(50) for _ in range(n)] for n in draw.sample(range(9), 3)]
        pairs += [(context, continuation) for continuation in [*own, own[0]][: number % 4 + 1]]
    draw.shuffle(pairs)
    return pairs


def directly(model: torch.nn.Module, pairs: list[Pair]) -> list[tuple[float, bool]]:
    """Each pair in one pass of its own, in fp64."""
    model, found = model.double(), []
    for context, continuation in pairs:
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation]))[0][0]
        logits = logits[len(context) - 1 : -1] if continuation else logits[:0]
        ids = torch.tensor(continuation, dtype=torch.long)
        values = logits.log_softmax(1).gather(1, ids[:, None]).sum().item()
        found.append((values, bool((logits.argmax(1) == ids).all())))
    model.float()
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("train_states", [False, True])
def test_continuations_are_scored_as_in_one_pass_each(version: str, train_states: bool):
    model = tiny_model(version, options={"train_states": train_states})
    pairs = random_pairs()
    expected = directly(model, pairs)
    for batch_size, chunk_len in ((16, 1024), (1, 7), (3, 5)):
        scorer = Scorer(model, batch_size=batch_size, chunk_len=chunk_len)
        found = score_continuations(scorer, pairs)
        values = [score.log_probability for score in found]
        assert values == pytest.approx([value for value, _ in expected], rel=1e-6, abs=1e-6)
        assert [score.is_greedy for score in found] == [greedy for _, greedy in expected]


def test_a_continuation_of_the_likeliest_tokens_is_greedy():
    model, context, continuation = tiny_model("6"), [3, 1, 4], []
    for _ in range(5):
        with torch.no_grad():
            logits, _ = model(torch.tensor([context + continuation]))
        continuation.append(int(logits[0, -1].argmax()))
    wrong = [*continuation[:-1], (continuation[-1] + 1) % 50]
    found = score_continuations(Scorer(model), [(context, continuation), (context, wrong)])
    assert [score.is_greedy for score in found] == [True, False]


def tokens_read(model: torch.nn.Module, call) -> list[tuple[int, int]]:
    """The shapes of tokens that the model reads during a call."""
    shapes = []
    hook = model.emb.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    call()
    hook.remove()
    return [tuple(shape) for shape in shapes]


def test_a_shared_context_is_read_once():
    model = tiny_model("7")
    pairs = [(list(range(40)), [number, 2]) for number in range(4)]
    shapes = tokens_read(model, lambda: score_continuations(Scorer(model), pairs))
    # All of the context but its last token, which every continuation reads with its first.
    assert shapes == [(1, 39), (4, 2)]


def test_a_long_text_is_read_in_chunks_of_bounded_size():
    model = tiny_model("7")
    ids = [number % 50 for number in range(300)]
    rows = [ScoredRow([0, *ids[:-1]], ids), ScoredRow([0, *ids[:9]], ids[:10])]
    scorer = Scorer(model, chunk_len=64)
    shapes = tokens_read(model, lambda: scorer.score(rows))
    assert shapes == [(2, 64), (1, 64), (1, 64), (1, 64), (1, 44)]


def test_logits_exist_for_a_slice_of_tokens_only(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("6")
    rows = [ScoredRow(list(range(40)), list(range(1, 41)))]
    expected = Scorer(model).score(rows)[0]
    sizes = []
    model.head.register_forward_hook(lambda _, __, logits: sizes.append(logits.shape[1]))
    # Seven rows of 50 logits in fp32.
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 7 * 50 * 4)
    found = Scorer(model).score(rows)[0]
    assert max(sizes) == 7 and sum(sizes) == 40
    np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, rtol=1e-6)


def test_logits_in_bf16_become_fp32_before_their_softmax():
    model = tiny_model("6").bfloat16()
    row = ScoredRow(list(range(30)), list(range(1, 31)))
    with torch.no_grad():
        logits = model(torch.tensor([row.tokens]))[0][0]
    ids = torch.tensor(row.targets)[:, None]
    exact = logits.double().log_softmax(1).gather(1, ids)[:, 0].numpy()
    found = Scorer(model).score([row])[0].log_probabilities
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    rounded = logits.log_softmax(1).gather(1, ids)[:, 0].double().numpy()
    assert abs(rounded - exact).max() > 1e-3


def test_what_the_pulse_raises_ends_the_evaluation():
    calls = []

    def pulse() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        Scorer(tiny_model("6"), chunk_len=8, pulse=pulse).score([ScoredRow([1] * 80, [2])])
    assert len(calls) == 3
