"""Perplexities under every policy, against figures by hand or from the model's logits."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from make_data import main as make_data
from rwkv_train.data.tokenize.tokenizer import Tokenizer, load_tokenizer
from rwkv_train.errors import ConfigError, DataError
from rwkv_train.evaluation.documents import EncodedDocument, document_of, read_documents
from rwkv_train.evaluation.perplexity import Policy, TextFigures, document_rows, evaluate_text
from rwkv_train.evaluation.scoring import Scorer
from rwkv_train.models.backbone import RWKV
from rwkv_train.models.registry import build_model
from tests.evaluation.small_vocabulary import small_tokenizer
from tests.models.tiny import tiny_config, tiny_model

TEXTS = ["A duck 🦆 swims.  ", "x", "", "One two three, four five six seven.\n"]


@pytest.fixture(scope="module")
def model() -> RWKV:
    return tiny_model("7", vocab_size=257)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


def measured(model: RWKV, tokenizer: Tokenizer, policy: Policy, texts=TEXTS) -> TextFigures:
    documents = [document_of(text, tokenizer) for text in texts]
    return evaluate_text(Scorer(model, batch_size=2, chunk_len=16), tokenizer, documents, policy)


def nats(model: RWKV, before: list[int], ids: list[int]) -> float:
    """-ln p of tokens behind others, by one pass in fp64."""
    with torch.no_grad():
        logits = model.double()(torch.tensor([before + ids]))[0][0, len(before) - 1 : -1]
    model.float()
    return -logits.log_softmax(1).gather(1, torch.tensor(ids)[:, None]).sum().item()


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary(tokenizer: Tokenizer):
    # All weights are zero, and so are the logits.
    figures = measured(build_model(tiny_config("6", vocab_size=257)), tokenizer, Policy())
    values = figures.values()
    assert values["bits_per_byte"] == pytest.approx(math.log2(257), rel=1e-6)
    assert values["compression_percent"] == pytest.approx(12.5 * math.log2(257), rel=1e-6)
    assert values["token_perplexity"] == pytest.approx(257, rel=1e-5)
    assert values["byte_perplexity"] == pytest.approx(257, rel=1e-5)


def test_documents_are_scored_whole_behind_a_0(model: RWKV, tokenizer: Tokenizer):
    figures = measured(model, tokenizer, Policy())
    kept = [text for text in TEXTS if text]
    expected = [nats(model, [0], tokenizer.encode(text)) for text in kept]
    assert figures.nats == pytest.approx(expected, rel=1e-6)
    values = figures.values()
    assert (values["documents"], values["empty_documents"]) == (3, 1)
    # The emoji is four bytes; words are the pieces between white space, an empty one at the end.
    assert values["bytes"] == sum(len(text.encode()) for text in kept)
    assert values["words"] == 5 + 1 + 8
    assert values["word_perplexity"] == pytest.approx(math.exp(sum(expected) / 14), rel=1e-5)
    assert values["loss"] == pytest.approx(sum(expected) / values["tokens"], rel=1e-6)


def test_positions_are_buckets_whose_mean_is_the_loss(model: RWKV, tokenizer: Tokenizer):
    values = measured(model, tokenizer, Policy()).values()
    parts = values["by_position"]
    assert [(p["from"], p["to"]) for p in parts[:4]] == [(0, 1), (1, 2), (2, 4), (4, 8)]
    assert [p["tokens"] for p in parts[:3]] == [3, 2, 4]
    total = sum(p["tokens"] * p["loss"] for p in parts)
    assert total / values["tokens"] == pytest.approx(values["loss"], rel=1e-9)
    first = [nats(model, [0], tokenizer.encode(text)[:1]) for text in TEXTS if text]
    assert parts[0]["loss"] == pytest.approx(sum(first) / 3, rel=1e-6)


def test_windows_score_every_token_once():
    rows = document_rows(list(range(1, 11)), Policy("windows", 4, 2))
    assert [list(row.targets) for row in rows] == [[1, 2, 3, 4], [5, 6], [7, 8], [9, 10]]
    assert [list(row.tokens) for row in rows][1:3] == [[0, 3, 4, 5], [0, 5, 6, 7]]
    disjoint = document_rows(list(range(1, 11)), Policy("windows", 4, prefix=False))
    # Without a 0 a window begins behind the last token of the one before.
    assert [list(row.tokens) for row in disjoint] == [[1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [list(row.targets) for row in disjoint] == [[2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_a_window_as_long_as_the_text_is_the_whole_text(model: RWKV, tokenizer: Tokenizer):
    whole = measured(model, tokenizer, Policy())
    wide = measured(model, tokenizer, Policy("windows", 40, 3))
    assert wide.nats == pytest.approx(whole.nats, rel=1e-6)
    narrow = measured(model, tokenizer, Policy("windows", 4, 3))
    assert narrow.tokens == whole.tokens and narrow.nats != pytest.approx(whole.nats, rel=1e-3)


def test_a_stream_carries_one_state_through_all_documents(model: RWKV, tokenizer: Tokenizer):
    first, _, _, last = (tokenizer.encode(text) for text in TEXTS)
    one = tokenizer.encode("x")
    expected = [
        nats(model, [0], first),
        nats(model, [0, *first, 0], one),
        nats(model, [0, *first, 0, *one, 0], last),
    ]
    assert measured(model, tokenizer, Policy("stream")).nats == pytest.approx(expected, rel=1e-6)


def test_without_a_prefix_a_first_token_is_not_scored(model: RWKV, tokenizer: Tokenizer):
    figures = measured(model, tokenizer, Policy(prefix=False))
    ids = tokenizer.encode(TEXTS[0])
    assert figures.nats[0] == pytest.approx(nats(model, ids[:1], ids[1:]), rel=1e-6)
    # Of the text of one byte nothing is left.
    assert figures.text_bytes == [len(ids) - 1, len(TEXTS[3]) - 1]
    assert figures.values()["empty_documents"] == 2
    stream = measured(model, tokenizer, Policy("stream", prefix=False))
    assert stream.text_bytes == [len(ids) - 1, len(TEXTS[3])]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("windows",), "--window"),
        (("windows", 4, 5), "--stride 5"),
        (("document", 4), "--window 4 belongs to --policy windows"),
    ],
)
def test_a_policy_that_says_too_little_or_too_much_is_refused(arguments: tuple, words: str):
    with pytest.raises(ConfigError, match=words):
        Policy(*arguments)


def documents(name: Path, tokenizer: Tokenizer) -> list[EncodedDocument]:
    return list(read_documents(str(name), tokenizer, "text")[0])


def test_a_binidx_pair_holds_the_documents_of_its_text(tmp_path: Path, tokenizer: Tokenizer):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "A duck 🦆 swims."}\n\n{"text": "Two  words"}\n', encoding="utf-8")
    pair = tmp_path / "pair"
    options = ["--tokenizer", "bytes", "--output", str(pair), "--no_shuffle", "--workers", "1"]
    assert make_data([str(rows), "1", "16", *options]) == 0
    of_text = documents(rows, tokenizer)
    assert documents(pair, tokenizer) == of_text
    assert [(document.text_bytes, document.words) for document in of_text] == [(18, 4), (10, 2)]
    other = small_tokenizer(tmp_path)
    with pytest.raises(DataError, match="was made with the tokenizer bytes"):
        documents(pair, other)


def test_a_fault_of_a_text_is_told_with_its_line(tmp_path: Path, tokenizer: Tokenizer):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: there is no key 'text'"):
        documents(rows, tokenizer)
