"""Characters come whole, whatever tokens they are cut into."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from rwkv_train.data.tokenize.tokenizer import (
    BytesTokenizer,
    Tokenizer,
    WorldTokenizer,
    load_tokenizer,
)
from rwkv_train.inference.streaming import TextStream

BYTES = BytesTokenizer()
TEXT = "Grüße, 世界! 👩‍🚀 ok"


def pieces(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    """What comes after each token, and at the end."""
    stream = TextStream(tokenizer, prompt or [])
    return [*(stream.add(token) for token in ids), stream.finish()]


def test_the_bytes_of_a_character_are_held_back_until_it_is_complete():
    # é is c3 a9, 世 is e4 b8 96
    found = pieces(BYTES, BYTES.encode("aé世b"))
    assert found == ["a", "", "é", "", "", "世", "b", ""]


def test_bytes_that_are_no_character_are_replaced_once_that_is_certain():
    ids = [0xC3 + 1, ord("a") + 1, 0xE4 + 1, 0xB8 + 1]
    assert pieces(BYTES, ids) == ["", "\ufffda", "", "", "\ufffd"]


def test_the_end_of_the_prompt_does_not_come_again():
    assert pieces(BYTES, BYTES.encode("né"), BYTES.encode("Grüße " * 9)) == ["n", "", "é", ""]
    assert pieces(BYTES, BYTES.encode("n"), BYTES.encode("?\ufffd")) == ["n", ""]


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_all_pieces_together_are_the_text_of_any_bytes(content: bytes):
    ids = [byte + 1 for byte in content]
    assert "".join(pieces(BYTES, ids)) == content.decode("utf-8", errors="replace")


@given(st.text(max_size=200).filter(lambda text: text.isprintable()))
@settings(max_examples=100, deadline=None)
def test_no_piece_of_a_text_holds_a_replacement(text: str):
    found = pieces(BYTES, BYTES.encode(text))
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


def test_world_tokens_stream_whole_characters():
    world = WorldTokenizer()
    found = pieces(world, world.encode(TEXT * 20))
    assert "".join(found) == TEXT * 20
    assert not any("\ufffd" in piece for piece in found)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer.json like that of RWKV-4's 20B vocabulary: a rare character is several tokens."""
    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(["the cat sat on the mat and the dog sat on the log"] * 9, trainer)
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(path))
    return load_tokenizer(str(path))


def test_tokens_of_a_tokenizer_json_stream_whole_characters(byte_level: Tokenizer):
    ids = byte_level.encode(TEXT * 20)
    assert len(byte_level.encode("世")) > 1
    found = pieces(byte_level, ids)
    assert "".join(found) == TEXT * 20
    assert not any("\ufffd" in piece for piece in found)


def test_a_space_that_a_decoder_drops_at_the_start_is_kept_in_the_middle(tmp_path: Path):
    words = ["<unk>", "▁the", "▁cat", "▁sat"]
    library = LibraryTokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    library.add_special_tokens(["<unk>"])
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.json"))
    ids = [1, 2, 3] * 30
    assert "".join(pieces(tokenizer, ids)) == " ".join(["the cat sat"] * 30)
    assert pieces(tokenizer, [2], [1]) == [" cat", ""]
