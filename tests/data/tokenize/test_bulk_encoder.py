"""Bulk tokenizing: the compiled trie and the one-by-one way give the same, on anything."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_train import compiler
from rwkv_train.compiler import plain_library
from rwkv_train.data.convert.pipeline import ConvertOptions, convert
from rwkv_train.data.inspect.summary import report
from rwkv_train.data.tokenize import bulk_encoder as bulk
from rwkv_train.data.tokenize.bulk_encoder import BulkTokenizer, Seconds, bulk_tokenizer
from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.data.tokenize.world_trie import SOURCE, WorldTrie
from rwkv_train.errors import BackendError, DataError
from tests.data.corpora import random_texts

BYTES = [bytes([byte]) for byte in range(256)]


def flags(*values):
    return np.array(values, bool)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The compiled library; skips without a compiler."""
    try:
        return plain_library(SOURCE, tmp_path_factory.mktemp("library"))
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def both(library):
    """The encoder with the library and the one without."""
    return BulkTokenizer("world", library).load(), BulkTokenizer("world").load()


def small_trie(library, *tokens):
    """Ids: byte + 1, then the tokens in order from 257 on."""
    return WorldTrie(library, [b"", *BYTES, *tokens])


def ids(trie, *texts):
    """Ids of the texts without closing zeros."""
    ends = np.cumsum([len(text) for text in texts])
    return trie.encode(b"".join(texts), ends, np.zeros(len(texts), bool))[0].tolist()


def test_the_longest_token_wins_and_a_failed_attempt_goes_back(library):
    trie = small_trie(library, b"ab", b"abcde", b"cd")
    assert ids(trie, b"abcde") == [258]
    # abcd is the way to abcde, but ends nowhere: back to ab, and on from there.
    assert ids(trie, b"abcdx") == [257, 259, ord("x") + 1]
    assert ids(trie, b"abab") == [257, 257]


def test_a_token_never_reaches_over_the_end_of_a_text(library):
    trie = small_trie(library, b"ab", b"abc")
    assert ids(trie, b"a", b"bc") == [ord("a") + 1, ord("b") + 1, ord("c") + 1]
    assert ids(trie, b"ab", b"", b"c") == [257, ord("c") + 1]


def test_a_closed_text_ends_with_0_and_counts_it(library):
    tokens, sizes = small_trie(library).encode(b"ab", np.array([1, 1, 2]), flags(1, 1, 0))
    assert tokens.tolist() == [98, 0, 0, 99]
    assert sizes.tolist() == [2, 1, 1]


def test_any_vocabulary_gives_what_a_search_through_it_gives(library):
    generator = random.Random(3)
    for _ in range(20):
        alphabet = bytes(generator.randrange(256) for _ in range(generator.choice([2, 40])))
        drawn = {bytes(generator.choices(alphabet, k=generator.randint(2, 6))) for _ in range(300)}
        vocabulary = [*BYTES, *sorted(drawn)]
        number = {token: 1 + i for i, token in enumerate(vocabulary)}
        text = bytes(generator.choices(alphabet, k=400))
        expected, at = [], 0
        while at < len(text):
            length = next(n for n in range(6, 0, -1) if text[at : at + n] in number)
            expected.append(number[text[at : at + length]])
            at += length
        assert ids(WorldTrie(library, [b"", *vocabulary]), text) == expected


@pytest.mark.parametrize(
    ("position", "wrong", "text"),
    [(0, 3, 0), (1, 0, 0), (2, 259, 0), (3, 258, 1), (3, 260, 1), (4, 7, 1)],
)
def test_ids_that_do_not_decode_to_their_text_are_found(library, position, wrong, text):
    trie = small_trie(library, b"ab", b"abc", b"xyz", b"ab\0")
    content, ends = b"abcxab", np.array([4, 6])
    tokens, sizes = trie.encode(content, ends, flags(1, 1))
    assert tokens.tolist() == [258, ord("x") + 1, 0, 257, 0]
    assert trie.first_inexact(content, ends, flags(1, 1), tokens, sizes) is None
    tokens[position] = wrong
    assert trie.first_inexact(content, ends, flags(1, 1), tokens, sizes) == text
    assert trie.first_inexact(content, ends, flags(text == 1, text == 0), tokens, sizes) is None


_ODD = "\u200d\u0301\ufe0f😀👩ก็好 \n\t0189aA'\"\\\0\ufffd\ud800"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.text(max_size=40) | st.text(_ODD, max_size=60), st.booleans())))
def test_it_gives_the_same_as_the_library_one_by_one(both, documents):
    texts = [text for text, _ in documents]
    closed = np.array([is_closed for _, is_closed in documents], bool)
    fast, slow = (encode(texts, closed, ~closed) for encode in both)
    assert fast.tokens.dtype == slow.tokens.dtype == np.uint16
    assert fast.tokens.tolist() == slow.tokens.tolist()
    assert fast.sizes.tolist() == slow.sizes.tolist()
    assert fast.text_bytes.tolist() == slow.text_bytes.tolist()
    assert fast.faults == slow.faults


def test_it_gives_the_same_on_a_megabyte_of_mixed_text(both):
    texts = list(random_texts(1.0))
    closed = np.ones(len(texts), bool)
    fast, slow = (encode(texts, closed, closed) for encode in both)
    assert len(fast.tokens) > 100_000
    assert (fast.tokens == slow.tokens).all() and (fast.sizes == slow.sizes).all()


def test_a_wrong_id_stops_the_conversion_and_names_the_text(both):
    encode = both[0]
    original = encode._trie.encode
    encode._trie.encode = lambda *arguments: (original(*arguments)[0] + 1, original(*arguments)[1])
    try:
        with pytest.raises(DataError, match="the ids of the text 'some text' do not decode"):
            encode(["some text"], flags(0), flags(1))
    finally:
        del encode._trie.encode


def test_without_a_compiler_it_works_as_before_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"text": "one"}\n{"text": "two words"}\n')

    def none():
        raise BackendError("no C++ compiler is on the PATH")

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "find_cpp_path", none)
        made = convert(ConvertOptions([str(tmp_path / "in.jsonl")], str(tmp_path / "a")))
    assert "note: tokenizing was slower than it can be: no C++ compiler" in report(made, 8)
    again = convert(ConvertOptions([str(tmp_path / "in.jsonl")], str(tmp_path / "b")))
    assert "slower" not in report(again, 8)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()


def test_a_library_that_cannot_be_loaded_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr(bulk, "plain_library", lambda source: tmp_path / "broken.so")
    chosen = bulk_tokenizer("world")
    assert chosen.library is None
    assert "slower" in chosen.note


def test_other_tokenizers_need_no_compiler():
    assert bulk_tokenizer("bytes") == BulkTokenizer("bytes")
    encoded = bulk_tokenizer("bytes").load()(["aé"], flags(1), flags(1))
    assert encoded.tokens.tolist() == [98, 0xC3 + 1, 0xA9 + 1, 0]
    assert encoded.text_bytes.tolist() == [3]


def test_the_vocabulary_has_a_token_for_every_byte():
    tokens = load_tokenizer("world").token_bytes()
    assert len(tokens) == 65536
    assert set(BYTES) <= set(tokens)
    assert tokens[0] == b""


def test_seconds_add_up_by_stage_also_across_processes():
    total = Seconds(parse=1.0)
    total["verify"] += 0.5
    total.add(pickle.loads(pickle.dumps(Seconds(parse=2.0, spool=4.0))))
    assert total == {"parse": 3.0, "verify": 0.5, "spool": 4.0}
