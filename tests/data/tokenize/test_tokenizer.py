"""Tokenizers: the community's ids, exact decoding, and no collision with the separator."""

from __future__ import annotations

from pathlib import Path

import pytest
import rwkv
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from rwkv_train.data.tokenize.tokenizer import load_tokenizer
from rwkv_train.errors import DataError
from tests.helpers import load_json

# Text that stresses a byte-level longest match: joiners, combining marks, right-to-left, private
# and unassigned characters, control characters, long runs, pieces of other code points' encodings.
ADVERSARIAL = st.lists(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(list("\u200d\ufe0f\u0301\u202e\x00\r\n\t \u3000👨👩🏽好é\ufeff\U0010ffff")),
        st.sampled_from(["    ", "\n\n", "the ", " import", "xxxx", "0000", "\r\n", "。”"]),
    ),
    max_size=60,
).map("".join)


@pytest.fixture(scope="module")
def world():
    return load_tokenizer("world")


@pytest.fixture(scope="module")
def trie():
    """The reference implementation, in the package of RWKV's author."""
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    return TRIE_TOKENIZER(str(Path(rwkv.__file__).parent / "rwkv_vocab_v20230424.txt"))


def test_world_ids_are_the_vectors(world):
    vector = load_json("binidx_small")
    assert [[*world.encode(text), 0] for text in vector["texts"]] == vector["items"]
    assert [world.decode(ids) for ids in vector["items"]] == vector["texts"]
    assert world.vocab_size == 65536


def test_every_world_token_decodes_to_the_references_bytes(world, trie):
    assert len(trie.idx2token) == 65529
    for number, token in trie.idx2token.items():
        assert world.decode_bytes([number]) == token


@given(text=ADVERSARIAL)
@example(text="")
@example(text="\ufffd" * 3)
@example(text="a" * 1000)
@example(text=" " * 300 + "\n" * 300)
@example(text="👨‍👩‍👧‍👦🏳️‍🌈e\u0301\u0301\u0301")
def test_world_agrees_with_the_reference_on_any_text(text, world, trie):
    ids = world.encode(text)
    assert ids == trie.encode(text)
    assert world.decode(ids) == text


@given(text=ADVERSARIAL)
def test_bytes_are_the_utf8_bytes_plus_one(text):
    tokenizer = load_tokenizer("bytes")
    ids = tokenizer.encode(text)
    assert ids == [byte + 1 for byte in text.encode()]
    assert tokenizer.decode([*ids, 0]) == text
    assert tokenizer.vocab_size == 257


@pytest.mark.parametrize("name", ["world", "bytes"])
def test_a_cut_character_decodes_to_its_bytes_and_shows_as_a_replacement(name, world):
    tokenizer = world if name == "world" else load_tokenizer(name)
    ids = [byte + 1 for byte in "好".encode()[:2]]
    assert tokenizer.decode_bytes(ids) == "好".encode()[:2]
    assert tokenizer.decode([*tokenizer.encode("a"), *ids]) == "a\ufffd"


def test_ids_without_a_token_decode_to_the_replacement_character(world):
    assert world.decode([65530, 65535]) == "\ufffd\ufffd"


@pytest.mark.parametrize(("name", "bad"), [("world", 65536), ("bytes", 257), ("bytes", -1)])
def test_ids_outside_the_vocabulary_are_refused(name, bad, world):
    tokenizer = world if name == "world" else load_tokenizer(name)
    with pytest.raises(DataError, match=f"id {bad} is outside the vocabulary"):
        tokenizer.decode([1, bad, 2])


@pytest.mark.parametrize("name", ["world", "bytes"])
def test_a_lone_surrogate_is_refused(name, world):
    tokenizer = world if name == "world" else load_tokenizer(name)
    with pytest.raises(DataError, match="lone surrogate at character 2"):
        tokenizer.encode("ok\ud800")


def byte_level(special="<|endoftext|>"):
    """A small byte-level BPE tokenizer whose id 0 is the special token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat " * 20], trainer)
    return tokenizer


def saved(tokenizer, folder):
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return load_tokenizer(str(path))


def test_a_tokenizer_json_gives_its_librarys_ids(tmp_path):
    library = byte_level()
    tokenizer = saved(library, tmp_path)
    text = "the cat, 好 👍\n\n  the mat"
    assert tokenizer.encode(text) == library.encode(text).ids
    assert tokenizer.decode([*tokenizer.encode(text), 0]) == text
    assert tokenizer.vocab_size == library.get_vocab_size()
    assert tokenizer.name == str(tmp_path / "tokenizer.json")
    assert load_tokenizer(tokenizer.name).encode(text) == tokenizer.encode(text)


def test_a_special_token_written_out_in_a_text_is_ordinary_text(tmp_path):
    tokenizer = saved(byte_level(), tmp_path)
    ids = tokenizer.encode("end <|endoftext|> of")
    assert 0 not in ids
    assert tokenizer.decode(ids) == "end <|endoftext|> of"


def test_truncation_and_padding_set_in_the_file_are_switched_off(tmp_path):
    library = byte_level()
    library.enable_truncation(4)
    library.enable_padding(length=50, pad_id=0, pad_token="<|endoftext|>")
    tokenizer = saved(library, tmp_path)
    assert tokenizer.decode(tokenizer.encode("one two three four")) == "one two three four"
    assert 0 not in tokenizer.encode("a")


def test_a_tokenizers_own_normalization_is_told(tmp_path):
    library = byte_level()
    library.normalizer = normalizers.NFC()
    tokenizer = saved(library, tmp_path)
    assert tokenizer.normalize("e\u0301") == "\u00e9"
    assert load_tokenizer("bytes").normalize("e\u0301") == "e\u0301"


def test_a_tokenizer_whose_id_0_is_a_word_is_refused(tmp_path):
    library = tokenizers.Tokenizer(models.WordLevel({"hello": 0, "world": 1}, unk_token="world"))
    with pytest.raises(DataError, match=r"id 0 .* is the ordinary token 'hello'.*<\|endoftext\|>"):
        saved(library, tmp_path)


def test_a_tokenizer_without_an_id_0_is_accepted(tmp_path):
    library = tokenizers.Tokenizer(models.WordLevel({"hello": 5}, unk_token="hello"))
    tokenizer = saved(library, tmp_path)
    assert (tokenizer.encode("hello"), tokenizer.vocab_size) == ([5], 6)


def test_a_name_that_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="wrld is neither 'world' nor 'bytes' nor"):
        load_tokenizer("wrld")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match=r"broken\.json is not a usable tokenizer\.json"):
        load_tokenizer(str(tmp_path / "broken.json"))
