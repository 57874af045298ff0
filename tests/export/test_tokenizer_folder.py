"""The tokenizers in exported folders give the ids that ours give."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tokenizers

from rwkv_train.data.tokenize.tokenizer import BytesTokenizer, WorldTokenizer, load_tokenizer
from rwkv_train.export.model_source import SourceModel
from rwkv_train.export.tokenizer_folder import tokenizer_definition, write_tokenizer
from rwkv_train.export.world_definition import END_TOKEN, byte_alphabet, chains_pattern
from tests.models.tiny import tiny_config

ADVERSARIAL = [
    "",
    " ",
    "\x00\x01\x7f",
    "a\n\n\nb \n\n\t c\r\n",
    "\"quotes\" and 'apostrophes' and \\backslashes\\n",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 e\u0301 \u0301",
    "مرحبا بالعالم שלום",
    "世界上最大的动物是什么?。\n\nユーザー",
    "\u2028\u2029\u200b\ufeff\U0010ffff",
    "=" * 300,
    "<s> [PAD65530] <|endoftext|>",
    "def f(x):\n        return {'a': [1, 2.5e-3]}  # ß Ünïcödé",
]


@pytest.fixture(scope="module")
def world() -> tokenizers.Tokenizer:
    return made(WorldTokenizer())


def made(tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_definition(tokenizer)))


def texts(tokens: list[bytes]) -> list[str]:
    """Returns texts of tokens in random order, and of random code points."""
    source = random.Random(7)
    words = [token.decode("utf-8", "ignore") for token in source.sample(tokens, 3000)]
    joined = ["".join(words[n : n + 15]) for n in range(0, len(words), 15)]
    points = ["".join(chr(source.randrange(0x20, 0xD7FF)) for _ in range(30)) for _ in range(50)]
    return [*ADVERSARIAL, *joined, *points]


def test_world_s_ids_are_ours(world: tokenizers.Tokenizer):
    ours = WorldTokenizer()
    for text in texts([token for token in ours.token_bytes() if token]):
        ids = world.encode(text).ids
        assert ids == ours.encode(text), text
        assert world.decode(ids) == text
    assert world.token_to_id(END_TOKEN) == 0
    assert world.get_vocab_size() == 65530


def test_the_end_written_out_is_the_end(world: tokenizers.Tokenizer):
    # As special tokens are everywhere in transformers.
    assert world.encode(f"a{END_TOKEN}").ids[-1] == 0


def test_a_text_is_cut_into_short_words(world: tokenizers.Tokenizer):
    words = world.pre_tokenizer.pre_tokenize_str("The quick brown fox, 狐狸. " * 20)
    assert max(len(word) for word, _ in words) < 16


def test_the_bytes_are_ours():
    ours, theirs = BytesTokenizer(), made(BytesTokenizer())
    for text in ADVERSARIAL:
        assert theirs.encode(text).ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert theirs.get_vocab_size() == 257


def test_the_alphabet_is_gpt_2_s():
    assert byte_alphabet()[ord("a")] == "a" and byte_alphabet()[ord(" ")] == "Ġ"
    assert set(byte_alphabet()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def test_words_are_cut_where_no_token_goes_on():
    # a is followed by b and by c, b by nothing: in the alphabet all three stand for themselves.
    assert chains_pattern([b"ab", b"ac", b"x"]) == r"(?:[\x{61}](?=[\x{62}-\x{63}]))*[\s\S]"


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    """A vocabulary in World's format: all bytes, and two words."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"ab", b"abc "]
    lines = [f"{number} {token!r} {len(token)}" for number, token in enumerate(tokens, 1)]
    path = tmp_path / "words.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_another_vocabulary_goes_into_the_folder(tmp_path: Path, vocabulary: Path):
    ours = load_tokenizer(str(vocabulary))
    model = SourceModel(tmp_path / "m.pth", {}, tiny_config("4"), ours)
    (tmp_path / "hf").mkdir()
    assert write_tokenizer(model, tmp_path / "hf") == []
    again = load_tokenizer(str(tmp_path / "hf"))
    assert again.encode("abab abc x") == ours.encode("abab abc x")


def test_a_tokenizer_json_is_copied_with_its_end(tmp_path: Path):
    made_of = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<|end|>": 0, "a": 1}, "a"))
    made_of.add_special_tokens(["<|end|>"])
    made_of.save(str(tmp_path / "own.json"))
    model = SourceModel(
        tmp_path / "m.pth", {}, tiny_config("4"), load_tokenizer(str(tmp_path / "own.json"))
    )
    (tmp_path / "hf").mkdir()
    assert write_tokenizer(model, tmp_path / "hf") == []
    own, copied = (
        (tmp_path / "own.json").read_bytes(),
        (tmp_path / "hf/tokenizer.json").read_bytes(),
    )
    assert own == copied
    settings = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert settings["eos_token"] == settings["pad_token"] == "<|end|>"


def test_a_model_without_a_known_tokenizer_says_so(tmp_path: Path):
    model = SourceModel(tmp_path / "m.pth", {}, tiny_config("4"), None, "nobody knows")
    assert write_tokenizer(model, tmp_path) == ["no tokenizer is in the folder: nobody knows"]
    assert not list(tmp_path.iterdir())
